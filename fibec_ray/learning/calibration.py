"""Measures how many devices should train in one pass on this machine, by a short trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fibec_ray.learning.job import LocalTraining
from fibec_ray.learning.lanes import LaneModel, Lanes
from fibec_ray.learning.local_update import Steps, local_update
from fibec_ray.model_types import LanedModel, Shard
from fibec_ray.types import Calibration

TIE = 1.05
"""Rates within this factor count as equal; the noise of short trials is about as large."""
PAST = 0.8
"""A rate below this share of the best one is past the peak and ends the search."""
STEPS = 3
"""Optimiser steps per lane in a trial."""
REPEATS = 3
"""Trials per number of lanes; the fastest counts."""


def find_lanes(seconds: Callable[[int], float], most: int, prefer_more: bool = False) -> Calibration:
    """Find the number of lanes, a power of 2 or `most`, with the most device-steps per second.

    seconds(n): time of one step on each of n devices. prefer_more: among equal rates choose the most lanes, which suits
    a GPU, where larger passes hide fixed costs; otherwise the fewest, which need the least memory. Running out of GPU
    memory ends the search.
    """
    rates: dict[int, float] = {}
    limit = None
    for lanes in [*(2**i for i in range((most - 1).bit_length())), most]:
        try:
            rates[lanes] = lanes / seconds(lanes)
        except torch.OutOfMemoryError:
            limit = f"{lanes} {'lane' if lanes == 1 else 'lanes'} ran out of GPU memory"
            break
        if rates[lanes] < PAST * max(rates.values()):
            break
    best = max(rates.values(), default=0.0)
    alike = [lanes for lanes, rate in rates.items() if rate * TIE >= best]
    return Calibration((max if prefer_more else min)(alike, default=1), rates, limit)


def step_seconds(
    model: LanedModel, shard: Shard, local: LocalTraining, lanes: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds for one training step of each lane: passes, gradients, clipping and optimiser, as in a round.

    The minimum over a few trials. A warm-up trial with the longest samples comes first; it fails if there is too little
    memory for them.
    """
    together, size = Lanes(model, lanes), min(local.batch_size, shard.num_samples)
    longest = torch.argsort(shard.lengths, descending=True, stable=True)[:size]
    _train(together, shard, local, [longest])
    found = []
    for _ in range(REPEATS):
        started = clock()
        _train(together, shard, local, [torch.arange(size)] * STEPS)
        found.append((clock() - started) / STEPS)
    return min(found)


def _train(together: Lanes, shard: Shard, local: LocalTraining, batches: list[Tensor]) -> None:
    """Run the same steps in each lane. Ends when the device is done, since it reads each lane's mean loss."""

    endless = local.model_copy(update={"max_steps": None})

    def work(lane: LaneModel) -> None:
        local_update(lane, shard, Steps(batches, endless, local.learning_rate))

    together.run([partial(work, lane) for lane in together.models])
