"""Data sets: tasks, where their rows come from, how rows become tokens, and how devices share them."""
