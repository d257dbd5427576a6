"""Masks that let whole neurons move: the base, and the control, which chooses as many by lot.

A neuron is a row of a matrix (of LoRA's B an output neuron, of A a rank unit), or a rank of a LoRA pair: row i of A
(r x in) and column i of B (out x r) together. Anything that is no LoRA pair has rows only.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.mask.base import Mask, may_move
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors, with_prefix

Neuron = Literal["row", "rank"]
A, B = ".lora_A.", ".lora_B."


def keep_top(values: Mapping[str, Tensor], ratio: float, neuron: Neuron) -> Tensors:
    """Bool tensors, True over the top `ratio` of neurons by the sum of their values; neurons that score 0 stay False.

    values: non-negative, (rows, columns) or (rows,) each. Neurons compete within their kind, across tensors: kinds are
    the last module of a name (lora_A, lora_B), as rows of different length do not compare; ranks are one kind. The
    number kept is rounded up; ties go to the earlier neuron.
    """
    scores = neuron_scores(values, neuron)
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in scores:
        kinds[matrix_kind(name)].append(name)
    kept: Tensors = {}
    for members in kinds.values():
        joined = torch.cat([scores[name] for name in members])
        top = _top(joined, math.ceil(ratio * len(joined) - 1e-9))
        kept |= dict(zip(members, top.split([len(scores[name]) for name in members]), strict=True))
    return {name: _spread(name, value, kept) for name, value in values.items()}


def neuron_scores(values: Mapping[str, Tensor], neuron: Neuron) -> Tensors:
    """(neurons,) sums, by the tensor that counts them: a pair's ranks are counted by its A."""
    sums = {name: value.reshape(len(value), -1).sum(1) for name, value in values.items()}
    if neuron == "row":
        return sums
    for name in [name for name in sums if is_pair_b(name, values)]:
        sums[partner_a(name)] = sums[partner_a(name)] + values[name].sum(0)
        del sums[name]
    return sums


def matrix_kind(name: str) -> str:
    """`...query.lora_A.weight` -> `lora_A.weight`."""
    return ".".join(name.rsplit(".", 2)[-2:])


def partner_a(name: str) -> str:
    """The A of the pair whose B is `name`."""
    return name.replace(B, A)


def is_pair_b(name: str, known: Mapping[str, Tensor]) -> bool:
    return B in name and partner_a(name) in known


def _spread(name: str, like: Tensor, kept: Tensors) -> Tensor:
    """From neurons to entries: rows, or columns of a B whose pair is kept by rank."""
    if name in kept:
        return kept[name].view(-1, *[1] * (like.dim() - 1)).expand_as(like).clone()
    return kept[partner_a(name)].expand_as(like).clone()


def _top(scores: Tensor, count: int) -> Tensor:
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[torch.argsort(scores, descending=True, stable=True)[:count]] = True
    return kept & (scores > 0)


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
