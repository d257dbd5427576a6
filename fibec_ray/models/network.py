"""Torch modules of small networks, whose layers are blocks.

Shapes: B samples, C scores, p numbers of a sample.
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

    def embed(self, features: Tensor) -> Tensor:
        """(B, *shape) -> (B, p): what the first layer sees of a sample."""
        return features.flatten(1)

    def forward(self, features: Tensor, embeds: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Scores (B, C), and the output of each layer, flattened to (B, size).

        features: (B, *shape). embeds: (B, p) in place of `embed(features)`.
        """
        x = features if embeds is None else embeds.view(features.shape)
        found = []
        for layer in self.layers:
            x = self.after(layer(x))
            found.append(x.flatten(1))
        return self.output(x.flatten(1)), found


class Flat(Network):
    """A network that flattens samples of any shape to vectors."""

    def forward(self, features: Tensor, embeds: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        return super().forward(features.flatten(1), embeds)
