"""Experiments as YAML: what may be written, and how files and command-line overrides become one checked value."""
