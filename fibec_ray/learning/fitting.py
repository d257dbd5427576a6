"""What a device has of the server's tensors, and what is sent to it.

A device may have a lower adapter rank than the server. Every device can compute P^0 from the run's seed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fibec_ray.learning.job import Job
from fibec_ray.tensors import Tensors


def full_rank_of(job: Job, device: int) -> int | None:
    """The device's full rank; None: all devices have the server's rank."""
    ranks = job.method.peft.device_ranks
    return None if ranks is None else ranks.of(device, job.seed)


def rank_of(job: Job, device: int, memory: Mapping[str, Tensor]) -> int | None:
    """The device's current rank: `full_rank_of`, or lower if training has reduced it. memory: the objective's."""
    lowered = int(memory["rank"]) if job.method.objective.lowers_rank and "rank" in memory else 0
    return lowered or full_rank_of(job, device)


def fitted(job: Job, values: Tensors, rank: int | None) -> Tensors:
    """The server's values in the form of a device of this rank."""
    ranks = job.method.peft.device_ranks
    return values if rank is None or ranks is None else ranks.fit(values, rank)


def on_wire(job: Job, values: Tensors, rank: int | None) -> Tensors:
    """A device's values or deltas in the form that is sent, on the server's scale."""
    ranks = job.method.peft.device_ranks
    return values if rank is None or ranks is None else ranks.unfit(values, rank)


def to_send(shared: Tensors, initial: Tensors, moving: Collection[str]) -> Tensors:
    """The shared tensors that must be sent to a device: those that this round trains or that differ from P^0.

    moving: names of those that this round trains. initial: P^0.
    """
    return {n: value for n, value in shared.items() if n in moving or not torch.equal(value, initial[n])}
