"""Aggregators that some faulty or hostile devices cannot carry away. All updates are in memory at once, unweighted."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Setting
from fibec_ray.tensors import Tensors, weighted_mean
from fibec_ray.types import DeviceUpdate


class Robust(Aggregator):
    """Shapes: M updates of the round, d shared entries."""

    @property
    def least_cohort(self) -> int:
        """The fewest updates that it can combine as its settings say."""
        return 1

    def unfit_for(self, setting: Setting) -> str | None:
        if setting.cohort_size >= self.least_cohort:
            return None
        return (
            f"{self.kind} needs a cohort_size of {self.least_cohort} as it is set, found {setting.cohort_size}; raise "
            "it, or change the aggregator's settings"
        )

    @abstractmethod
    def pick(self, deltas: Sequence[Tensors]) -> Tensors:
        """The step, from at least one update; empty if there are too few for any."""

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        deltas = [update.delta for update in updates]
        return (self.pick(deltas) if deltas and deltas[0] else {}), state


class CoordinateWise(Robust):
    @abstractmethod
    def middle(self, ordered: Tensor) -> Tensor:
        """ordered: (M, *shape) float64, ascending along M. Returns (*shape)."""

    def pick(self, deltas: Sequence[Tensors]) -> Tensors:
        stacks = {name: torch.stack([delta[name] for delta in deltas]).double() for name in deltas[0]}
        return {name: self.middle(stack.sort(0).values).to(deltas[0][name]) for name, stack in stacks.items()}


class Median(CoordinateWise):
    """Coordinate-wise median (Yin et al., ICML 2018); of an even number the mean of the middle two.

    Withstands fewer than half of the devices. Of one or two devices it is their mean.
    """

    kind: Literal["median"] = "median"

    def middle(self, ordered: Tensor) -> Tensor:
        count = len(ordered)
        return ordered[(count - 1) // 2 : count // 2 + 1].mean(0)


class TrimmedMean(CoordinateWise):
    """Coordinate-wise trimmed mean (Yin et al., ICML 2018): without the floor(trim M) smallest and largest entries.

    trim = 0 is the uniform mean. A cohort of which nothing would be trimmed is refused at the start. A round that lost
    devices, or had updates quarantined, trims as many of the others as the formula says, maybe none.
    """

    kind: Literal["trimmed_mean"] = "trimmed_mean"
    trim: float = Field(0.2, ge=0, lt=0.5, description="fraction of devices cut off at each end (beta in the paper)")

    @property
    def least_cohort(self) -> int:
        return math.ceil(1 / self.trim - 1e-9) if self.trim else 1

    def middle(self, ordered: Tensor) -> Tensor:
        cut = math.floor(self.trim * len(ordered) + 1e-9)
        return ordered[cut : len(ordered) - cut].mean(0)


class Krum(Robust):
    """Multi-Krum (Blanchard et al., NeurIPS 2017): the mean of the m updates that lie closest to their neighbours.

    The score of an update is the sum of its squared distances to its M - f - 2 nearest others; the m lowest scores are
    taken, ties in cohort order. m = 1 is Krum. Needs M >= 2 f + 3, as in the paper, and m <= M - f, so that there may
    be m honest devices. f = 0 and m = M is the uniform mean.

    A cohort that is too small is refused at the start. A round that lost devices, or had updates quarantined, goes on
    with the largest f that M allows, and with m <= M - f: if those that are missing are the faulty ones, what is left
    of f is enough. With fewer than 3 updates no f is left, and the round moves nothing.
    """

    kind: Literal["krum"] = "krum"
    num_byzantine: int = Field(1, ge=0, description="f: devices of a round that may send anything")
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
        """(M,) from (M, d). faulty: f of this round; None: as it is set."""
        f = self.num_byzantine if faulty is None else faulty
        # One row at a time: differences, not the expansion of the square, which cancels.
        distances = torch.stack([(flat - row).square().sum(1) for row in flat])
        distances.fill_diagonal_(torch.inf)
        return distances.sort(1).values[:, : len(flat) - f - 2].sum(1)
