"""A physics-informed network: its score is a differential operator of the network's output, not the output itself.

For an output u(x), a sample (x, c) has the score

    c_0 (-Laplacian u(x)) + c_1 u(x) + c_2 u(x)^2

so the data decides which equation is solved. A boundary value and a test point are the case c = (0, 1, 0).

Derivatives are propagated forward through the layers (Taylor mode; Li et al. 2023, "Forward Laplacian"). Each layer is
called once, on rows stacked along the token axis: the value, the derivatives along each axis, the Laplacian, and a row
of zeros. The last one gives the bias, which is subtracted from the derivatives. Per-sample gradients therefore follow
from the usual sums over tokens (`curvature/per_sample.py`): of the bias too, whose derivative parts cancel.

Shapes: B samples, d axes, T = d + 2 rows without the row of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray.models.network import Network, Shape

NUM_COEFFICIENTS = 3
"""Numbers of a sample behind its coordinates: c_0, c_1, c_2."""


class Taylor(NamedTuple):
    """A function's value and derivatives at B points."""

    value: Tensor
    """(B, C)"""
    gradient: Tensor
    """(B, d, C)"""
    laplacian: Tensor
    """(B, C)"""


class OperatorNet(Network):
    """Dense layers with tanh; one output, u. See the module's docstring for the score."""

    def embed(self, features: Tensor) -> Tensor:
        """(B, d + 3) -> (B, d): the coordinates."""
        return features[:, :-NUM_COEFFICIENTS]

    def forward(self, features: Tensor, embeds: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Scores (B, 1), and the value of each layer (B, size).

        features: (B, d + 3), coordinates and coefficients. embeds: (B, d), other coordinates.
        """
        u, found = self.taylor(self.embed(features) if embeds is None else embeds)
        c = features[:, -NUM_COEFFICIENTS:]
        return c[:, :1] * -u.laplacian + c[:, 1:2] * u.value + c[:, 2:] * u.value.square(), found

    def taylor(self, x: Tensor) -> tuple[Taylor, list[Tensor]]:
        """u and its derivatives at the points x (B, d), and the value of each layer (B, size)."""
        rows, found = identity_rows(x), []
        for layer in self.layers:
            rows = tanh_rows(linear_rows(layer, rows))
            found.append(rows[:, 0])
        rows = linear_rows(self.output, rows)
        return Taylor(rows[:, 0], rows[:, 1:-1], rows[:, -1]), found


def identity_rows(x: Tensor) -> Tensor:
    """(B, T, d): the coordinates x (B, d) and their derivatives, which are unit vectors and 0."""
    units = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
    return torch.cat([x.unsqueeze(1), units, torch.zeros_like(x).unsqueeze(1)], 1)


def linear_rows(layer: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Rows (B, T, in) through a linear layer: (B, T, out). Derivatives do not see the bias."""
    y = layer(F.pad(rows, (0, 0, 0, 1)))
    return torch.cat([y[:, :1], y[:, 1:-1] - y[:, -1:]], 1)


def tanh_rows(rows: Tensor) -> Tensor:
    """Rows (B, T, size) through tanh.

    With s = tanh, s' = 1 - s^2 and s'' = -2 s s': d_j s(y) = s'(y) d_j y, and
    Laplacian s(y) = s'(y) Laplacian y + s''(y) sum_j (d_j y)^2.
    """
    value, first, laplacian = torch.tanh(rows[:, :1]), rows[:, 1:-1], rows[:, -1:]
    slope = 1 - value.square()
    bent = slope * (laplacian - 2 * value * first.square().sum(1, keepdim=True))
    return torch.cat([value, slope * first, bent], 1)


def dense(shape: Shape, hidden: Sequence[int]) -> OperatorNet:
    """A network for samples of shape (d + 3,). Initial values come from torch's global generator."""
    sizes = [shape[0] - NUM_COEFFICIENTS, *hidden]
    layers = [nn.Linear(i, o) for i, o in zip(sizes, sizes[1:], strict=False)]
    return OperatorNet(layers, nn.Tanh(), nn.Linear(sizes[-1], 1))
