"""Masks by neuron: the base class, and the control that chooses neurons at random.

A neuron is a row of a matrix (an output neuron of LoRA's B, a rank of A), or a rank of a LoRA pair: row i of A (r x in)
and column i of B (out x r) together. Tensors outside LoRA pairs have only rows.
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
    """True for the top `ratio` of neurons by the sum of their values; neurons with score 0 stay False.

    values: non-negative, (rows, columns) or (rows,) each. Returns bool tensors of the same shapes. Neurons compete
    across tensors but within their kind, since rows of different length are not comparable. Kinds are the last module
    of a name (lora_A, lora_B); ranks are one kind. The number kept is rounded up; ties go to the earlier neuron.
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
    """(neurons,) sums by tensor. A pair's ranks are listed under the name of its A."""
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
    """The name of the A of the pair whose B is `name`."""
    return name.replace(B, A)


def is_pair_b(name: str, known: Mapping[str, Tensor]) -> bool:
    """True for the B of a pair whose A is known too."""
    return B in name and partner_a(name) in known


def _spread(name: str, like: Tensor, kept: Tensors) -> Tensor:
    """Expand neurons to entries: rows, or columns of a B whose pair is kept by rank."""
    if name in kept:
        return kept[name].view(-1, *[1] * (like.dim() - 1)).expand_as(like).clone()
    return kept[partner_a(name)].expand_as(like).clone()


def _top(scores: Tensor, count: int) -> Tensor:
    """True for the `count` highest scores above 0; ties go to the lower index."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[torch.argsort(scores, descending=True, stable=True)[:count]] = True
    return kept & (scores > 0)


class ByNeuron(Mask):
    """Base of masks by neuron. A subclass's `refresh` returns a memory with `kept/NAME`, bool, for each personal
    tensor.
    """

    ratio: float = Field(
        0.3, ge=0, le=1, description="rho_loc: fraction of neurons that move; 0 freezes all, 1 masks nothing"
    )
    neuron: Neuron = Field("row", description="unit of the mask: a row of a matrix, or a rank of a LoRA pair")

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
    """Random neurons: separates "fewer entries move" from "the right entries move". This control is ours.

    Unlike a Fisher mask at LoRA's start it also keeps rows of A, although B = 0 makes their gradient 0 at first.
    """

    kind: Literal["random_neurons"] = "random_neurons"
    redraw_every: int | None = Field(None, ge=1, description="participations between two draws; null: drawn once")
    keeps: ClassVar[str] = "mask (device)"

    def refresh(self, memory: Tensors, scan: FisherScan, names: Collection[str], rng: torch.Generator) -> Tensors:
        count = int(memory.get("participations", 0))
        keep = may_move(memory, names)
        if not keep or (self.redraw_every is not None and count % self.redraw_every == 0):
            draws = {name: torch.rand(scan.model.trainable[name].shape, generator=rng) for name in names}
            keep = keep_top(draws, self.ratio, self.neuron)
        return {"participations": torch.tensor(count + 1), **with_prefix("kept", keep)}
