"""Fisher merging in every round: entries are weighted by each device's diagonal Fisher information."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.likelihoods import Label
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Need, Passes, of_label
from fibec_ray.tensors import Tensors, under_prefix, weighted_mean, with_prefix
from fibec_ray.types import Asked, DeviceUpdate, Extra

SLACK = 1e-3
"""Largest rounding error of a trace of 1."""


class FisherMerging(Aggregator):
    """Matena & Raffel (NeurIPS 2022): theta <- sum_k w_k F_k theta_k / sum_k w_k F_k, entry by entry.

    w_k = n_k / sum_j n_j; F_k: diagonal Fisher information of device k's data at its trained theta_k. All theta_k start
    from the same theta, so averaging deltas is equivalent. Equal F_k give FedAvg, and so does an entry where all F_k
    are 0. Sends twice as much as FedAvg. The paper merges once; here every round does.
    Ours: eps is relative, and its weight goes to the mean, not to zero as in the paper's denominator.
    """

    kind: Literal["fisher_merging"] = "fisher_merging"
    label: Label = Field(
        "expected",
        description="labels in the gradients: observed (the data's), expected (all; the paper's), or sampled (the "
        "model's)",
    )
    max_samples: int | None = Field(64, ge=1, description="samples per device for F_k, drawn each round; null: all")
    normalise: bool = Field(
        False, description="scale each F_k to trace 1, so that devices with large gradients do not dominate"
    )
    eps: float = Field(
        1e-8,
        ge=0,
        allow_inf_nan=False,
        description="weight of FedAvg's mean, in units of a tensor's mean sum_k w_k F_k",
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*super().needs, *of_label(self.label))

    sends: ClassVar[str] = "diagonal Fisher information"

    def extras_after(
        self, model: LocalModel, shard: Shard, names: Collection[str], batches: Sequence[Tensor], rng: torch.Generator
    ) -> Tensors:
        if not names:
            return {}
        rows = torch.cat(list(batches))
        rows = rows[torch.randperm(len(rows), generator=rng)[: self.max_samples]]
        groups = rows.split(max(map(len, batches)))
        fisher = FisherScan(model, shard, groups, names, rng).read(self.label, "all").diagonal
        return with_prefix("fisher", _of_trace_one(fisher) if self.normalise else fisher)

    def passes(self, round_: int, answers: Answers) -> Sequence[Passes]:
        return [Passes(self.max_samples, None, answers.backwards(self.label), single_gradients=True)]

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        return {f"fisher/{name}": Extra(tuple(value.shape), least=0) for name, value in asked.shared.items()}

    def fault(self, asked: Asked, update: DeviceUpdate) -> str | None:
        trace = _trace(under_prefix("fisher", update.extras))
        if self.normalise and trace and abs(trace - 1) > SLACK:
            return f"the update's Fisher information has trace {trace:g}; with normalise it must be 1"
        return None

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        dtypes: dict[str, torch.dtype] = {}

        def terms() -> Iterator[tuple[float, Tensors]]:
            for update in updates:
                dtypes.update({name: value.dtype for name, value in update.delta.items()})
                delta = {name: value.double() for name, value in update.delta.items()}
                fisher = {name: value.double() for name, value in under_prefix("fisher", update.extras).items()}
                pulls = {name: fisher[name] * value for name, value in delta.items()}
                yield (
                    update.num_samples,
                    with_prefix("mean", delta) | with_prefix("fisher", fisher) | with_prefix("pull", pulls),
                )

        sums = weighted_mean(terms())
        return {
            name: merged(sums[f"pull/{name}"], sums[f"fisher/{name}"], sums[f"mean/{name}"], self.eps).to(dtype)
            for name, dtype in dtypes.items()
            if f"mean/{name}" in sums
        }, state


def merged(pull: Tensor, fisher: Tensor, mean: Tensor, eps: float) -> Tensor:
    """(sum w F delta + e mean) / (sum w F + e), with e relative to the average of sum w F; the mean where both are
    0.
    """
    floor = eps * fisher.mean()
    total = fisher + floor
    return torch.where(total > 0, (pull + floor * mean) / total, mean)


def _of_trace_one(fisher: Tensors) -> Tensors:
    """Scale to trace 1; unchanged if all entries are 0."""
    trace = _trace(fisher)
    return {name: value / trace for name, value in fisher.items()} if trace > 0 else fisher


def _trace(fisher: Tensors) -> float:
    return float(sum(value.double().sum() for value in fisher.values()))
