"""How many devices should train in one pass on this machine: a short trial; called by group_worker.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from fibec_ray.learning.lanes import Lanes
from fibec_ray.model_types import LanedModel, LocalModel, Shard

WORTH = 1.05
"""How much more of a round's work twice as many lanes must get done, or they are not worth their memory."""
REPEATS = 3


def best_lanes(seconds: Callable[[int], float], most: int) -> int:
    """The number of lanes, a power of 2 or `most`, from which on twice as many no longer pay.

    seconds(n): of one step of n lanes. Raises nothing: a number of lanes for which a GPU has no memory ends the search.
    """
    best, rate = 1, 0.0
    for lanes in _doubling(most):
        try:
            found = lanes / seconds(lanes)
        except torch.OutOfMemoryError:
            break
        if found < WORTH * rate:
            break
        best, rate = lanes, found
    return best


def _doubling(most: int) -> Iterator[int]:
    lanes = 1
    while lanes < most:
        yield lanes
        lanes *= 2
    yield most


def step_seconds(model: LanedModel, shard: Shard, batch_size: int, lanes: int) -> float:
    """The least of a few steps' forward and backward passes, with the same samples in each lane."""
    rows = torch.arange(min(batch_size, shard.num_samples))
    batch = shard.batch(rows)
    together = Lanes(model, lanes)

    def step(lane: LocalModel) -> float:
        """A number that is there when the device is done."""
        lane.train(True)
        out, _ = lane.watched(batch)
        grads = lane.grad(out.losses.mean(), list(lane.trainable.values()))
        return sum(float(grad.sum()) for grad in grads if grad is not None)

    def once() -> float:
        started = time.perf_counter()
        together.run([lambda lane=lane: step(lane) for lane in together.models])  # type: ignore[misc]
        return time.perf_counter() - started

    return min(once() for _ in range(REPEATS))
