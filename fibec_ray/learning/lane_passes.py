"""The model passes of one training step of several lanes: which lanes share one, and their batches.

Shapes: D lanes of a pass, B samples of its largest batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fibec_ray.learning.local_update import Training
from fibec_ray.model_types import Batch, LanedModel

LEAST_FILL = 0.75
"""Batches share a pass if each has at least this share of the pass's positions; padding costs compute."""


@dataclass(frozen=True, eq=False)
class LanePass:
    """One pass of a step: some lanes, and their samples on the model's device."""

    lanes: Sequence[int]
    """places in the group"""
    batch: Batch
    shares: Tensor
    """(D, B) weight of each sample in its lane's mean loss; 0 for samples that only fill up"""
    rows: Sequence[Tensor]
    """each lane's own rows of its shard"""
    at: Tensor | None
    """`lanes`, on the device; None: all active ones"""

    @property
    def counts(self) -> Tensor:
        """(D,) samples of each lane."""
        return self.shares.count_nonzero(1)

    def lane_losses(self, losses: Tensor) -> Tensor:
        """Mean losses (D,) of samples' losses (D B,)."""
        return (losses.view(self.shares.shape) * self.shares).sum(1)


def passes_of_step(
    model: LanedModel,
    trainings: Sequence[Training],
    rows: Sequence[Sequence[Tensor]],
    step: int,
    device: torch.device,
) -> list[LanePass]:
    """The passes of a step, with batches on the model's device. Counts their work.

    rows: those of each lane's batches, the lanes with the most batches first.
    """
    own = [each[step] for each in rows if step < len(each)]
    batches = [training.shard.batch(each) for training, each in zip(trainings, own, strict=False)]
    for training, batch in zip(trainings, batches, strict=False):
        work = model.cost(batch, graph=True)
        for _ in range(training.steps.repeats):
            training.model.work.add(work)
    return [_pass(model, trainings, own, batches, lanes, device) for lanes in alike(batches)]


def _pass(
    model: LanedModel,
    trainings: Sequence[Training],
    rows: Sequence[Tensor],
    batches: Sequence[Batch],
    lanes: Sequence[int],
    device: torch.device,
) -> LanePass:
    """One pass, in which each lane has as many samples as the largest batch: copies of its last one fill it up."""
    most = max(len(rows[lane]) for lane in lanes)
    shares, parts = torch.zeros(len(lanes), most), []
    for i, lane in enumerate(lanes):
        missing = most - len(rows[lane])
        shares[i, : len(rows[lane])] = 1 / len(rows[lane])
        filled = torch.cat([rows[lane], rows[lane][-1:].expand(missing)])
        parts.append(trainings[lane].shard.batch(filled) if missing else batches[lane])
    at = None if len(lanes) == len(batches) else torch.tensor(lanes, device=device)
    own = [rows[lane].to(device) for lane in lanes]
    return LanePass(lanes, model.joined(parts).to(device), shares.to(device), own, at)


def alike(batches: Sequence[Batch]) -> list[list[int]]:
    """Split lanes into passes, so that no pass is mostly padding."""
    groups: list[list[int]] = []
    size: tuple[int, int] = (0, 0)
    for i in sorted(range(len(batches)), key=lambda i: (-batches[i].length, -batches[i].num_samples)):
        rows, length = batches[i].num_samples, batches[i].length
        wider = max(size[0], rows), max(size[1], length)
        least = min(batches[j].num_samples * batches[j].length for j in [*(groups[-1] if groups else []), i])
        if groups and least >= LEAST_FILL * wider[0] * wider[1]:
            groups[-1].append(i)
            size = wider
        else:
            groups.append([i])
            size = rows, length
    return [sorted(group) for group in groups]
