"""Estimates what a run will need before it starts: memory, disk, traffic, operations and time."""
