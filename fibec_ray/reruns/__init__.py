"""A run that is taken up again: resumed where it stopped, verified or replayed in part; called by the CLI."""
