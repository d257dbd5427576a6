"""Trained models: load what a run leaves, predict with it, and write it as an adapter or as a plain model."""
