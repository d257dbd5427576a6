"""Which of the server's tensors a device has, and what of them travels to it.

Devices may have room for a lower rank than the server's adapter has; and every device knows P^0 from the run's seed.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from fibec_ray.learning.job import Job
from fibec_ray.tensors import Tensors
from fibec_ray.types import DeviceState


def rank_of(job: Job, device: int, state: DeviceState) -> int | None:
    """What the device has room for, unless its training has found that less will do; None: all are alike."""
    found = job.method.objective.rank(dict(state.memory.get("objective", {})))
    return found or job.method.peft.rank_of(device, job.seed)


def fitted(job: Job, values: Tensors, rank: int | None) -> Tensors:
    """The server's values as a device of this rank has them."""
    return values if rank is None else job.method.peft.fit(values, rank)


def on_wire(job: Job, values: Tensors, rank: int | None) -> Tensors:
    """Values or deltas of a device of this rank as they travel, on the server's scale."""
    return values if rank is None else job.method.peft.unfit(values, rank)


def news(shared: Tensors, initial: Tensors, moving: Collection[str]) -> Tensors:
    """Of the shared tensors, those that a device must be sent: not what rests in this round and has never moved.

    moving: names of those that this round trains. initial: P^0.
    """
    return {n: value for n, value in shared.items() if n in moving or not torch.equal(value, initial[n])}
