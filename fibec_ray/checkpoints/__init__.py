"""Checkpoints of a run and its identity: written during training, read by `resume`, `verify` and `replay`."""
