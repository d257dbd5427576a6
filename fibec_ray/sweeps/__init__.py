"""One experiment with one thing changed at a time, over several seeds: read from YAML, run as child processes."""
