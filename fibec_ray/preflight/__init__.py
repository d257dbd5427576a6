"""What a run will take, said before anything of it starts: memory, disk, traffic, operations and time."""
