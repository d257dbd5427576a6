"""A device's fixed batches, which are the same for every method, so methods are compared on the same batches.

Also the batches that a round uses with pooled data, the baseline of centralised training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fibec_ray import seeds


def fixed_batches(seed: int, device: int, num_samples: int, batch_size: int) -> list[Tensor]:
    """Rows of each batch, (B,) int64: a seeded split of the device's samples; the last batch may be short."""
    rng = seeds.generator(seed, "batches", device)
    return list(torch.randperm(num_samples, generator=rng).split(batch_size))


def steps_of(round_: int, num_batches: int, epochs: int, cohort_size: int, num_devices: int) -> range:
    """The steps of a round, numbered from the start of the run.

    A cohort sees cohort_size / num_devices of all samples per epoch, on average. A round takes that many batches times
    `epochs`, at least one, rounded so that the total so far is exact to half a batch.
    """
    per_round = max(num_devices, cohort_size * epochs * num_batches)  # in units of 1 / num_devices
    start, stop = ((2 * t * per_round + num_devices) // (2 * num_devices) for t in (round_, round_ + 1))
    return range(start, stop)


def walk(steps: range, num_batches: int, shuffled: Callable[[int], Sequence[int]]) -> list[int]:
    """The batch of each step: pass after pass through all batches, continuing where the last round ended.

    shuffled: number of a pass -> its batches in order.
    """
    orders = {number: shuffled(number) for number in sorted({step // num_batches for step in steps})}
    return [orders[step // num_batches][step % num_batches] for step in steps]


def until_drop_out(visible: list[Tensor], share: float, rng: torch.Generator) -> list[Tensor]:
    """A random share of the batches, one or more: those of a device that drops out in mid-round."""
    chosen = torch.randperm(len(visible), generator=rng)[: max(1, int(share * len(visible)))]
    return [visible[int(i)] for i in chosen.sort().values]
