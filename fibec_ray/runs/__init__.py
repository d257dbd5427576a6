"""A run from start to end, and again: started, resumed, verified, replayed, and mirrored to a URL."""
