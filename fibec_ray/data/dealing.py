"""Assigns rows to devices: pure functions on arrays.

N rows, K devices, C classes. An "owner" array (N,) holds the device of each row, so shards are always disjoint and
complete.

Sizes and priors are draws from symmetric Dirichlet distributions of any concentration. For small alpha most shares are
below the smallest positive float (their logarithms are around -1 / alpha). numpy's draws are zero there and lose the
order of the small shares, so we keep logarithms in units of 1 / alpha.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


MOST = 1e300
"""Above this concentration all shares are equal bit for bit."""


@dataclass(frozen=True)
class Draws:
    """K draws of C shares."""

    shares: Floats
    """(K, C), each row sums to 1; the smallest may be 0"""
    logs: Floats
    """(K, C): scale * log(share), up to a constant per row"""
    scale: float

    def among(self, row: int, left: NDArray[np.bool_]) -> Floats:
        """(C,) shares of one draw, relative to the largest among the classes in `left`; 0 for the others."""
        logs = np.where(left, self.logs[row], -np.inf)
        return _exp(logs - logs.max(), self.scale)


def draw(rng: np.random.Generator, spare: np.random.Generator, alpha: float, size: int, count: int) -> Draws:
    """Draw K = count times from Dirichlet(alpha, ...) over C = size shares.

    Uses numpy's draws if all are positive. Otherwise computes G_c / sum_c G_c of Gamma(alpha) variables in log space:
    log G_c = log H_c + log(U_c) / alpha, with H_c ~ Gamma(alpha + 1) and U_c uniform (Marsaglia and Tsang 2000).

    spare: generator for the draws in log space. Its U_c do not depend on alpha, so a smaller alpha always gives more
    skewed shares.
    """
    alpha = min(alpha, MOST)
    shares = rng.dirichlet(np.full(size, alpha), size=count)
    if (shares > 0).all():
        return Draws(shares, np.log(shares), 1.0)
    log_uniforms = -spare.standard_exponential((count, size))
    scale = min(alpha, 1.0)
    logs = scale * np.log(spare.standard_gamma(alpha + 1, (count, size))) + log_uniforms * (scale / alpha)
    shares = _exp(logs - logs.max(axis=1, keepdims=True), scale)
    return Draws(shares / shares.sum(axis=1, keepdims=True), logs, scale)


def _exp(logs: Floats, scale: float) -> Floats:
    with np.errstate(over="ignore", under="ignore"):  # -1 / 1e-320 is -inf, and its exponential 0
        return np.exp(logs / scale)


Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Row numbers, one array per device: disjoint, and together all rows."""

    train: list[Ints]
    test: list[Ints]
    """some may be empty"""
    groups: Mapping[str, Ints] = field(default_factory=dict)
    """(N,) groups of the training rows that the rule dealt by, if they are not the labels: {"topic": ...}"""


def shards_of(owner: Ints, num_devices: int) -> list[Ints]:
    """K arrays of row numbers, each ascending."""
    order = np.argsort(owner, kind="stable").astype(np.int64)
    return np.split(order, np.searchsorted(owner[order], np.arange(1, num_devices)))


def sizes_of(shares: Floats, num_rows: int) -> Ints:
    """(K,) shard sizes that sum to N: shares * N rounded, the remainder to the last device (FedPepTAO's rule).

    With many devices and few rows the remainder can exceed half of the last shard, or make it negative. Then sizes are
    rounded down, and the rows left over go one each to the devices that lost most by it.
    """
    exact = shares * num_rows
    sizes = np.rint(exact).astype(np.int64)
    remainder = num_rows - int(sizes.sum())
    if 2 * abs(remainder) <= sizes[-1]:
        sizes[-1] += remainder
        return sizes
    sizes = np.floor(exact).astype(np.int64)
    short = num_rows - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:short]] += 1
    return sizes


def deal_evenly(num_rows: int, num_devices: int, rng: np.random.Generator) -> Ints:
    """Owners of shuffled rows. Shard sizes differ by at most one row."""
    return rng.permutation(np.arange(num_rows, dtype=np.int64) % num_devices)


def deal_by_size(sizes: Ints, rng: np.random.Generator) -> Ints:
    """Owners of shuffled rows, sizes[k] rows for device k."""
    return rng.permutation(np.repeat(np.arange(len(sizes), dtype=np.int64), sizes))


def deal_groups(counts: Ints, num_devices: int, rng: np.random.Generator) -> Ints:
    """(G,) the device of each group of rows, with counts (G,): the largest first, to the device with the fewest rows.

    Groups of one size are dealt in random order. Every device has a group: G >= num_devices.
    """
    if len(counts) == num_devices:
        return np.arange(num_devices, dtype=np.int64)
    shuffled = rng.permutation(len(counts))
    loads = [(0, device) for device in range(num_devices)]
    owner = np.empty(len(counts), dtype=np.int64)
    for group in shuffled[np.argsort(-counts[shuffled], kind="stable")].tolist():
        load, device = heappop(loads)
        owner[group] = device
        heappush(loads, (load + int(counts[group]), device))
    return owner


def deal_by_prior(labels: Ints, sizes: Ints, priors: Draws, rng: np.random.Generator) -> Ints:
    """Owners by repeated draws: a device that is not full, a class from its prior (K, C), that class's next row.

    A class with no rows left is drawn again, which equals drawing from the prior restricted to the remaining classes.
    If their prior is 0 in floating point, its logarithms decide.
    """
    num_classes = priors.shares.shape[1]
    rows = [np.flatnonzero(labels == c).tolist() for c in range(num_classes)]
    for class_rows in rows:
        class_rows.reverse()  # the next row is popped from the end
    left = np.array([len(class_rows) > 0 for class_rows in rows])
    cumulative = np.cumsum(priors.shares, axis=1).tolist()
    open_devices, room = np.flatnonzero(sizes).tolist(), sizes.tolist()
    device_draws, class_draws = rng.random(len(labels)).tolist(), rng.random(len(labels)).tolist()
    owner = np.empty(len(labels), dtype=np.int64)
    for device_draw, class_draw in zip(device_draws, class_draws, strict=True):
        at = int(device_draw * len(open_devices))
        device = open_devices[at]
        class_ = min(bisect_right(cumulative[device], class_draw), num_classes - 1)
        if not left[class_]:
            class_ = _redraw(priors, device, left, rng)
        owner[rows[class_].pop()] = device
        left[class_] = len(rows[class_]) > 0
        room[device] -= 1
        if room[device] == 0:
            open_devices[at] = open_devices[-1]
            open_devices.pop()
    return owner


def deal_by_class_counts(labels: Ints, counts: Ints, rng: np.random.Generator) -> Ints:
    """Owners that divide each class in proportion to counts (K, C), to within one row per device.

    A class that no device has is divided evenly.
    """
    owner = np.empty(len(labels), dtype=np.int64)
    for c in range(counts.shape[1]):
        rows = rng.permutation(np.flatnonzero(labels == c))
        weights = counts[:, c] if counts[:, c].any() else np.ones(len(counts))
        ends = np.rint(np.cumsum(weights) / weights.sum() * len(rows))
        owner[rows] = np.searchsorted(ends, np.arange(len(rows)), side="right")
    return owner


def class_counts(labels: Ints, owner: Ints, num_devices: int, num_classes: int) -> Ints:
    """(K, C): how many rows of each class each device has."""
    flat = np.bincount(owner * num_classes + labels, minlength=num_devices * num_classes)
    return flat.reshape(num_devices, num_classes).astype(np.int64)


def _redraw(priors: Draws, device: int, left: NDArray[np.bool_], rng: np.random.Generator) -> int:
    mass = priors.shares[device] * left
    if not mass.sum() > 0:
        mass = priors.among(device, left)
    ends = np.cumsum(mass)
    # The last class with mass: a draw at the very end must not fall on a class without rows.
    return min(int(np.searchsorted(ends, rng.random() * ends[-1], side="right")), int(np.flatnonzero(mass)[-1]))
