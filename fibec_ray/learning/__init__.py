"""What devices and the server do in a round, on any fleet; free of Ray."""
