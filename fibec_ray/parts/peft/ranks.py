"""Devices whose adapter has a lower rank than the server's; offered by the PEFT kinds that can be cut."""

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
    """Cuts the server's adapter to a device's rank, and sets the scale that the device computes with."""

    classes: tuple[int, ...] | None
    """the ranks that devices may have; None: all devices have the server's"""
    scaling: Callable[[int | None], float]
    """s on a device of this rank; of None: of the server's adapter"""

    def of(self, device: int, seed: int) -> int | None:
        """The rank that a device has room for, drawn by the run's seed; None if devices do not differ."""
        if self.classes is None:
            return None
        return self.classes[int(seeds.numpy_generator(seed, "rank", device).integers(len(self.classes)))]

    def fit(self, values: Mapping[str, Tensor], rank: int) -> Tensors:
        """The server's tensors as a device of this rank has them: of the same shapes, zero where it has no entries."""
        return scaled(blank(values, rank), self.scaling(None) / self.scaling(rank))

    def unfit(self, values: Mapping[str, Tensor], rank: int) -> Tensors:
        """The other way, for values and for deltas: on the server's scale, and without the entries it does not have."""
        return scaled(cut(values, rank), self.scaling(rank) / self.scaling(None))

    def set(self, module: nn.Module, rank: int | None) -> None:
        """Makes the attached adapter compute as a device of this rank does; None: as the server's."""
        for layer in adapted_layers(module):
            layer.scaling["default"] = self.scaling(rank)


def adapted_layers(module: nn.Module) -> list[Any]:
    """The modules that hold an A and a B."""
    return [layer for layer in module.modules() if isinstance(getattr(layer, "scaling", None), dict)]
