"""The Ray fleet: one actor per device or pool of devices, a server actor, and recovery from lost actors and nodes."""
