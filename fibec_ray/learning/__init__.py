"""The work of devices and of the server in a round, on any fleet; free of Ray."""
