"""Experiments as YAML: the settings, and how files and command-line overrides become one validated value."""
