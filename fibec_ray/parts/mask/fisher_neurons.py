"""FibecFed's sparse local update: only the neurons with most Fisher information are trained."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.fisher import FisherScan, momentum
from fibec_ray.parts.mask.base import Mask
from fibec_ray.tensors import Tensors, select, under_prefix, with_prefix


class FisherNeurons(Mask):
    """FibecFed (Liu et al., EMNLP 2024): of the personal tensors, train the neurons of highest importance.

    F_k^t = gamma F_k^{t-1} + (1 - gamma) F~_k^t (diagonal, over the batches visible in the round; F_k^0 = F~_k^0 over
    all data at the initial model). The importance of a neuron is the sum of its entries of F. A neuron is a row of a
    LoRA matrix: of B an output neuron, of A a rank unit; rows are ranked within their matrix kind, across all personal
    layers of the device. gamma, the ratio and this reading of "neuron" are ours: the paper's could not be sourced.
    A neuron without Fisher information is never chosen: at LoRA's start B = 0, so that all of A scores exactly 0.
    """

    kind: Literal["fisher_neurons"] = "fisher_neurons"
    ratio: float = Field(0.3, ge=0, le=1, description="rho_loc: fraction of neurons that move; 0 freezes, 1 is no mask")
    gamma: float = Field(0.9, ge=0, le=1, description="momentum of the diagonal Fisher information")
    refresh_every: int = Field(1, ge=1, description="participations between two updates of the Fisher information")
    start_at: Literal["init", "first_participation"] = Field(
        "init",
        description="where F_k^0 comes from: init, all of a device's data at the initial model; first_participation, "
        "the batches visible then, at the model received then",
    )

    @property
    def opens(self) -> bool:
        return self.start_at == "init"

    @property
    def needs_personal(self) -> bool:
        return True

    def prepare(self, scan: FisherScan) -> Tensors:
        return with_prefix("fisher", scan.diagonal) | {"participations": torch.tensor(0)}

    def refresh(self, memory: Tensors, scan: FisherScan, names: Collection[str]) -> Tensors:
        count = int(memory.get("participations", 0))
        fisher = select(under_prefix("fisher", memory), names)
        if count % self.refresh_every == 0:
            fisher = momentum(fisher, select(scan.diagonal, names), self.gamma)
        return with_prefix("fisher", fisher) | {"participations": torch.tensor(count + 1)}

    def keep(self, memory: Tensors, names: Collection[str]) -> Tensors:
        fisher = select(under_prefix("fisher", memory), names)
        if self.ratio == 1:
            return {name: torch.ones_like(value, dtype=torch.bool) for name, value in fisher.items()}
        return keep_top_rows(fisher, self.ratio)

    def fisher(self, memory: Tensors) -> Tensors:
        return under_prefix("fisher", memory)


def keep_top_rows(fisher: Tensors, ratio: float) -> Tensors:
    """True over the top `ratio` of rows of each matrix kind by row sum; rows that score 0 stay False.

    fisher: (rows, columns) or (rows,) each. Kinds are told apart by the last module of the name (lora_A, lora_B). The
    number kept is rounded up; ties go to the earlier row.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in fisher:
        kinds[matrix_kind(name)].append(name)
    out: Tensors = {}
    for members in kinds.values():
        scores = torch.cat([_row_sums(fisher[name]) for name in members])
        kept = _top(scores, math.ceil(ratio * len(scores) - 1e-9))
        for name, rows in zip(members, kept.split([len(fisher[name]) for name in members]), strict=True):
            out[name] = rows.view(-1, *[1] * (fisher[name].dim() - 1)).expand_as(fisher[name]).clone()
    return {name: out[name] for name in fisher}


def matrix_kind(name: str) -> str:
    """`...query.lora_A.weight` -> `lora_A.weight`."""
    return ".".join(name.rsplit(".", 2)[-2:])


def _row_sums(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).sum(1)


def _top(scores: Tensor, count: int) -> Tensor:
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[torch.argsort(scores, descending=True, stable=True)[:count]] = True
    return kept & (scores > 0)
