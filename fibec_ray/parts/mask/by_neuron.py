"""Masks that let whole neurons move: the base, and the control, which chooses as many by lot."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

import torch
from pydantic import Field

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.mask.base import Mask, may_move
from fibec_ray.parts.mask.neurons import Neuron, is_pair_b, keep_top
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors, with_prefix


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


class RandomNeurons(ByNeuron):
    """Separates "fewer entries move" from "the right entries move" (ours).

    Unlike a Fisher mask at LoRA's start it keeps rows of A too, where B = 0 still holds their gradient at 0.
    """

    kind: Literal["random_neurons"] = "random_neurons"
    redraw_every: int | None = Field(None, ge=1, description="participations between two draws; null: one for good")
    keeps: ClassVar[str] = "mask (device)"

    def refresh(self, memory: Tensors, scan: FisherScan, names: Collection[str], rng: torch.Generator) -> Tensors:
        count = int(memory.get("participations", 0))
        keep = may_move(memory, names)
        if not keep or (self.redraw_every is not None and count % self.redraw_every == 0):
            lots = {name: torch.rand(scan.model.trainable[name].shape, generator=rng) for name in names}
            keep = keep_top(lots, self.ratio, self.neuron)
        return {"participations": torch.tensor(count + 1), **with_prefix("kept", keep)}
