"""Reads round logs and draws them; uses only the published schema."""
