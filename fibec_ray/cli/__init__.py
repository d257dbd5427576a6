"""The `fibec-ray` command: its arguments, its messages, its live view and its tables."""
