"""Devices with a lower adapter rank than the server's; for PEFT kinds whose adapter can be cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fibec_ray import seeds
from fibec_ray.low_rank import blank, cut, scaled
from fibec_ray.tensors import Tensors


@dataclass(frozen=True)
class Ranks:
    """Cuts the server's adapter to a device's rank, and sets the device's scaling."""

    classes: tuple[int, ...] | None
    """the ranks of the device classes; None: all devices have the server's rank"""
    scaling: Callable[[int | None], float]
    """the factor s on a device of this rank; None: the server's"""

    def of(self, device: int, seed: int) -> int | None:
        """The rank of a device, drawn by the run's seed; None if devices do not differ."""
        if self.classes is None:
            return None
        return self.classes[int(seeds.numpy_generator(seed, "rank", device).integers(len(self.classes)))]

    def fit(self, values: Mapping[str, Tensor], rank: int) -> Tensors:
        """Convert the server's tensors for a device of this rank: the same shapes, zero in the entries it lacks."""
        return scaled(blank(values, rank), self.scaling(None) / self.scaling(rank))

    def unfit(self, values: Mapping[str, Tensor], rank: int) -> Tensors:
        """Convert a device's values or deltas to the server's scale, without the entries the device lacks."""
        return scaled(cut(values, rank), self.scaling(rank) / self.scaling(None))

    def set(self, module: nn.Module, rank: int | None) -> None:
        """Set the attached adapter's scaling for a device of this rank; None: the server's."""
        for layer in adapted_layers(module):
            layer.scaling["default"] = self.scaling(rank)


def adapted_layers(module: nn.Module) -> list[Any]:
    """The modules that hold an A and a B."""
    return [layer for layer in module.modules() if isinstance(getattr(layer, "scaling", None), dict)]
