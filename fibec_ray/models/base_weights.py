"""A frozen base model and the hooks that its owner calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class BaseWeights:
    """A frozen base. finish: called with the whole module after the adapter is attached."""

    def __init__(self, base: Any, finish: Callable[[nn.Module], object]):
        self.base, self.finish = base, finish

    def after_forward(self) -> None:
        """Called after a forward pass with a graph."""

    def before_backward(self) -> None:
        """Called before each backward pass."""
