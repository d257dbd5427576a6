"""The control of every claim about masks: as many neurons, chosen by lot."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

import torch
from pydantic import Field

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.mask.base import may_move
from fibec_ray.parts.mask.by_neuron import ByNeuron
from fibec_ray.parts.mask.neurons import keep_top
from fibec_ray.tensors import Tensors, with_prefix


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
