"""Holds rows out for testing where a data set has no test rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fibec_ray.errors import DataError
from fibec_ray.seeds import numpy_generator

Ints = NDArray[np.int64]


def held_out(strata: Sequence[Any] | Ints, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Row numbers (train, test), both ascending: `fraction` of N rows, the same share of each stratum.

    strata: (N,) the group of each row, its label or its user. Each group keeps at least one training row, so a group of
    one row has no test row. Raises DataError if no row can be held out.
    """
    codes = np.unique(np.asarray(strata), return_inverse=True)[1]
    counts = np.bincount(codes)
    total = min(max(1, round(fraction * len(codes))), len(codes) - len(counts))
    if total < 1:
        raise DataError(
            f"data.test_fraction: no rows can be held out for testing: {len(codes)} rows, and each of {len(counts)} "
            "labels or users needs one for training; add rows, or name the test rows with data.test=FILE"
        )
    rng = numpy_generator(seed, "held_out")
    order = rng.permutation(len(codes))
    takes = _shares(counts, fraction, total, rng)
    grouped = order[np.argsort(codes[order], kind="stable")]
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(codes), dtype=np.int64)  # of a row within its group, in the shuffled order
    rank[grouped] = np.arange(len(codes)) - starts[codes[grouped]]
    is_test = rank < takes[codes]
    return np.flatnonzero(~is_test).astype(np.int64), np.flatnonzero(is_test).astype(np.int64)


def at_random(num_rows: int, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Row numbers (train, test), both ascending: `fraction` of N rows, at least one of each.

    Raises DataError for fewer than two rows.
    """
    if num_rows < 2:
        raise DataError("data.test_fraction: one row cannot be shared between training and test; name the test rows")
    order = numpy_generator(seed, "held_out").permutation(num_rows).astype(np.int64)
    count = min(num_rows - 1, max(1, round(fraction * num_rows)))
    return np.sort(order[count:]), np.sort(order[:count])


def _shares(counts: Ints, fraction: float, total: int, rng: np.random.Generator) -> Ints:
    """Test rows of each group: in proportion, by largest remainder, and less than the group has."""
    exact = counts * fraction
    takes = np.minimum(np.floor(exact).astype(np.int64), counts - 1)
    ties = rng.random(len(counts))
    while takes.sum() < total:
        room = np.where(takes < counts - 1, exact - takes, -np.inf)
        best = np.lexsort((ties, -room))
        best = best[np.isfinite(room[best])][: total - int(takes.sum())]
        takes[best] += 1
    return takes
