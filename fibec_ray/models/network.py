"""Torch modules of small networks, whose layers are blocks.

Shapes: B samples, C scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

Shape = tuple[int, ...]


class Network(nn.Module):
    """Weight layers with the modules after them, and an output layer; all are trained."""

    def __init__(self, layers: Sequence[nn.Module], after: nn.Module, output: nn.Linear):
        super().__init__()
        self.layers, self.after, self.output = nn.ModuleList(layers), after, output

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, *shape) -> scores (B, C), and the output of each layer, flattened to (B, size)."""
        found = []
        for layer in self.layers:
            x = self.after(layer(x))
            found.append(x.flatten(1))
        return self.output(x.flatten(1)), found


class Flat(Network):
    """A network that flattens samples of any shape to vectors."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().forward(x.flatten(1))
