"""Data sets: what a task is, where its rows come from, how they become tokens, and how devices share them out."""
