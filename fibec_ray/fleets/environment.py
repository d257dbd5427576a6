"""Environment variables that Ray reads; called by cli.py and cluster.py."""

from __future__ import annotations

from collections.abc import MutableMapping


def drop_empty(environment: MutableMapping[str, str]) -> None:
    """Remove RAY_* variables that are set to nothing: Ray reads '' as an address, a folder or a number."""
    for name in [name for name, value in environment.items() if name.startswith("RAY_") and not value.strip()]:
        del environment[name]
