"""Which of the server's tensors a device has, and what of them travels to it.

Devices may have room for a lower rank than the server's adapter has; and every device knows P^0 from the run's seed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fibec_ray.learning.job import Job
from fibec_ray.tensors import Tensors


def room_of(job: Job, device: int) -> int | None:
    """The rank that the device has room for; None: all devices are alike."""
    ranks = job.method.peft.device_ranks
    return None if ranks is None else ranks.of(device, job.seed)


def rank_of(job: Job, device: int, memory: Mapping[str, Tensor]) -> int | None:
    """The same, unless the device's training has found that less will do. memory: the objective's."""
    lowered = int(memory["rank"]) if job.method.objective.lowers_rank and "rank" in memory else 0
    return lowered or room_of(job, device)


def fitted(job: Job, values: Tensors, rank: int | None) -> Tensors:
    """The server's values as a device of this rank has them."""
    ranks = job.method.peft.device_ranks
    return values if rank is None or ranks is None else ranks.fit(values, rank)


def on_wire(job: Job, values: Tensors, rank: int | None) -> Tensors:
    """Values or deltas of a device of this rank as they travel, on the server's scale."""
    ranks = job.method.peft.device_ranks
    return values if rank is None or ranks is None else ranks.unfit(values, rank)


def news(shared: Tensors, initial: Tensors, moving: Collection[str]) -> Tensors:
    """Of the shared tensors, those that a device must be sent: not what rests in this round and has never moved.

    moving: names of those that this round trains. initial: P^0.
    """
    return {n: value for n, value in shared.items() if n in moving or not torch.equal(value, initial[n])}
