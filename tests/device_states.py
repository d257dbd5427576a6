"""What devices have stored, for tests that look at it without asking a fleet which state was accepted."""

from __future__ import annotations

from fibec_ray.learning.store import StateStore
from fibec_ray.types import DeviceState, StateRef


def stored(store: StateStore, device: int, before: int) -> DeviceState:
    """The newest state that a device wrote before a round; the empty one if it wrote none."""
    versions = [version for version in store.versions(device) if version < before]
    return store.load(device, StateRef(versions[-1], "") if versions else None)
