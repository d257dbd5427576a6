"""Pooled data, the anchor of centralised training: which batches a round trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def steps_of(round_: int, num_batches: int, epochs: int, cohort_size: int, num_devices: int) -> range:
    """The round's steps, counted from the first of the run.

    A cohort sees cohort_size / num_devices of all samples in an epoch, on average; so many batches times `epochs` are a
    round's, at least one, rounded so that the rounds so far add up to within half a batch.
    """
    per_round = max(num_devices, cohort_size * epochs * num_batches)  # in units of 1 / num_devices
    start, stop = ((2 * t * per_round + num_devices) // (2 * num_devices) for t in (round_, round_ + 1))
    return range(start, stop)


def walk(steps: range, num_batches: int, shuffled: Callable[[int], Sequence[int]]) -> list[int]:
    """The batch of each step: pass after pass through all of them, going on where the last round ended.

    shuffled: number of a pass -> its batches in order.
    """
    orders = {number: shuffled(number) for number in sorted({step // num_batches for step in steps})}
    return [orders[step // num_batches][step % num_batches] for step in steps]
