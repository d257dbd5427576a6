"""Robust aggregators, which tolerate some faulty or hostile devices. They hold all updates in memory and ignore
weights.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Need, Setting
from fibec_ray.tensors import Tensors, weighted_mean
from fibec_ray.types import DeviceUpdate


class Robust(Aggregator):
    """Base of the robust aggregators. Shapes: M updates of the round, d shared entries."""

    @property
    def least_cohort(self) -> int:
        """The smallest number of updates that its settings allow."""
        return 1

    def unfit_for(self, setting: Setting) -> str | None:
        if setting.cohort_size >= self.least_cohort:
            return None
        return (
            f"{self.kind} with these settings needs a cohort_size of at least {self.least_cohort}, found "
            f"{setting.cohort_size}; raise cohort_size, or change the aggregator's settings"
        )

    @abstractmethod
    def pick(self, deltas: Sequence[Tensors]) -> Tensors:
        """The step, from at least one update; empty if there are too few updates."""

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        deltas = [update.delta for update in updates]
        return (self.pick(deltas) if deltas and deltas[0] else {}), state


class CoordinateWise(Robust):
    """Base of aggregators that treat each entry separately."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*super().needs, "dense")

    @abstractmethod
    def middle(self, ordered: Tensor) -> Tensor:
        """The step of one tensor, (*shape). ordered: (M, *shape) float64, ascending along M."""

    def pick(self, deltas: Sequence[Tensors]) -> Tensors:
        stacks = {name: torch.stack([delta[name] for delta in deltas]).double() for name in deltas[0]}
        return {name: self.middle(stack.sort(0).values).to(deltas[0][name]) for name, stack in stacks.items()}


class Median(CoordinateWise):
    """Coordinate-wise median (Yin et al., ICML 2018); the mean of the middle two for an even number of updates.

    Tolerates faults in fewer than half of the devices. For one or two devices it is their mean.
    """

    kind: Literal["median"] = "median"

    def middle(self, ordered: Tensor) -> Tensor:
        count = len(ordered)
        return ordered[(count - 1) // 2 : count // 2 + 1].mean(0)


class TrimmedMean(CoordinateWise):
    """Coordinate-wise trimmed mean (Yin et al., ICML 2018): drops the floor(trim M) smallest and largest values of each
    entry.

    trim = 0 is the uniform mean. A cohort too small to trim anything is rejected at the start. If a round loses devices
    or has quarantined updates, the formula applies to the rest and may trim nothing.
    """

    kind: Literal["trimmed_mean"] = "trimmed_mean"
    trim: float = Field(0.2, ge=0, lt=0.5, description="fraction of devices dropped at each end (beta in the paper)")

    @property
    def least_cohort(self) -> int:
        return math.ceil(1 / self.trim - 1e-9) if self.trim else 1

    def middle(self, ordered: Tensor) -> Tensor:
        cut = math.floor(self.trim * len(ordered) + 1e-9)
        return ordered[cut : len(ordered) - cut].mean(0)


class Krum(Robust):
    """Multi-Krum (Blanchard et al., NeurIPS 2017): the mean of the m updates that are closest to their neighbours.

    The score of an update is the sum of its squared distances to its M - f - 2 nearest others. The m lowest scores are
    used, ties in cohort order. m = 1 is Krum. Needs M >= 2 f + 3, as in the paper, and m <= M - f, so that m honest
    devices can exist. f = 0 and m = M is the uniform mean.

    A cohort that is too small is rejected at the start. If a round loses devices or has quarantined updates, it uses
    the largest f that M allows and m <= M - f. That f is enough if the missing devices are the faulty ones. With fewer
    than 3 updates no f fits, and the round changes nothing.
    """

    kind: Literal["krum"] = "krum"
    num_byzantine: int = Field(1, ge=0, description="f: faulty devices to tolerate in a round")
    num_selected: int = Field(1, ge=1, description="m: updates that are averaged")

    @property
    def least_cohort(self) -> int:
        return max(2 * self.num_byzantine + 3, self.num_selected + self.num_byzantine)

    def pick(self, deltas: Sequence[Tensors]) -> Tensors:
        faulty = min(self.num_byzantine, (len(deltas) - 3) // 2)
        if faulty < 0:
            return {}
        flat = torch.stack([torch.cat([value.flatten().double() for value in delta.values()]) for delta in deltas])
        count = min(self.num_selected, len(deltas) - faulty)
        chosen = self.scores(flat, faulty).argsort(stable=True)[:count].tolist()
        return weighted_mean((1, deltas[k]) for k in sorted(chosen))

    def scores(self, flat: Tensor, faulty: int | None = None) -> Tensor:
        """Scores (M,) of updates (M, d). faulty: f of this round; None: the setting."""
        f = self.num_byzantine if faulty is None else faulty
        # One row at a time, by differences: expanding the square would lose precision.
        distances = torch.stack([(flat - row).square().sum(1) for row in flat])
        distances.fill_diagonal_(torch.inf)
        return distances.sort(1).values[:, : len(flat) - f - 2].sum(1)
