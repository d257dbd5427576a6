"""A frozen base, and what its keeper must be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Held:
    """finish: called with the whole module once the adapter is in it."""

    def __init__(self, base: Any, finish: Callable[[nn.Module], object]):
        self.base, self.finish = base, finish

    def passed(self) -> None:
        """After a forward pass with a graph."""

    def again(self) -> None:
        """Before a backward pass, maybe not the first one through its graph."""
