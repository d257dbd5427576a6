"""A frozen base model and the hooks that its owner calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class BaseWeights:
    """finish: called with the whole module once the adapter is in it."""

    def __init__(self, base: Any, finish: Callable[[nn.Module], object]):
        self.base, self.finish = base, finish

    def passed(self) -> None:
        """After a forward pass with a graph."""

    def again(self) -> None:
        """Before a backward pass, maybe not the first one through its graph."""
