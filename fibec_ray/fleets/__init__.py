"""Where devices run: in this process (`local.py`) or on a Ray cluster (`ray/`). How both are laid out."""
