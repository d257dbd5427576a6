"""Masks that let whole neurons move; the base of the Fisher and the random one."""

from __future__ import annotations

from pydantic import Field

from fibec_ray.parts.mask.base import Mask
from fibec_ray.parts.mask.neurons import Neuron, is_pair_b
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors


class ByNeuron(Mask):
    """A subclass's `refresh` returns a memory with `kept/NAME`, bool, for each personal tensor."""

    ratio: float = Field(0.3, ge=0, le=1, description="rho_loc: fraction of neurons that move; 0 freezes, 1 is no mask")
    neuron: Neuron = Field("row", description="what is kept or not: a row of a matrix, or a rank of a LoRA pair")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("personal",)

    @property
    def lacks(self) -> tuple[Need, ...]:
        return () if self.ratio else ("moving",)

    def neurons(self, keep: Tensors) -> Tensors:
        rows = super().neurons(keep)
        if self.neuron == "row":
            return rows
        return {name: value for name, value in rows.items() if not is_pair_b(name, keep)}
