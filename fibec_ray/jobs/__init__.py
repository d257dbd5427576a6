"""Runs as jobs of a Ray cluster: submitted, followed, stopped and brought back."""
