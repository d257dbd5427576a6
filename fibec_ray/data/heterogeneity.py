"""Measures how much the devices' shards differ, and the scores of trivial baselines.

In a regression the labels are regions of the domain, and the targets are values (N,). N rows, K devices, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.dealing import Ints, Split

Values = NDArray[np.floating[Any]]
Column = NDArray[Any]
"""(N,) groups or values of the training rows, or (N, C) labels"""


def heterogeneity(shards: Sequence[Ints], columns: Mapping[str, Column | None]) -> dict[str, float]:
    """How much the devices' training rows differ, as means over the devices that have rows. 0: all alike.

    shards: K arrays of row numbers. columns: what to compare, by name; the type of a column decides the measure:

    - (N,) whole numbers or texts (classes, regions, topics, users): `NAME_tv_mean`, the total variation distance
      between the device's shares of the groups and the overall shares; below 1.
    - (N, C) 0/1 (several labels per row): `NAME_shift_mean`, the difference between the device's share of rows that
      have a label and the overall share, averaged over the C labels; at most 1.
    - (N,) floats (targets of a regression, lengths): `NAME_shift_mean`, the distance of the device's mean from the
      overall mean, in overall standard deviations.

    Columns that are None or empty are left out, and floats that are all equal. Also returned: smallest_shard and
    largest_shard, in samples, over all devices.
    """
    sizes = [len(rows) for rows in shards]
    filled = [rows for rows in shards if len(rows)]
    found = {}
    for name, column in columns.items():
        if column is None or not len(column):
            continue
        if column.ndim == 2:
            found[f"{name}_shift_mean"] = _share_shift(column, filled)
        elif column.dtype.kind != "f":
            found[f"{name}_tv_mean"] = _total_variation(column, filled)
        elif (shift := _mean_shift(column, filled)) is not None:
            found[f"{name}_shift_mean"] = shift
    return {**found, "smallest_shard": float(min(sizes)), "largest_shard": float(max(sizes))}


def _total_variation(groups: Column, shards: Sequence[Ints]) -> float:
    """Mean over the shards of (1/2) sum_c |p_k(c) - p(c)|. Needs memory for the groups that a shard has only."""
    codes = np.unique(groups, return_inverse=True)[1]
    overall = np.bincount(codes) / len(codes)
    distances = []
    for rows in shards:
        has, counts = np.unique(codes[rows], return_counts=True)
        gaps = np.abs(counts / len(rows) - overall[has]).sum()
        distances.append(0.5 * (gaps + max(0.0, 1.0 - overall[has].sum())))  # groups that the shard lacks
    return _mean(distances)


def _share_shift(labels: Column, shards: Sequence[Ints]) -> float:
    """Mean over the shards and labels of |p_k(c) - p(c)|."""
    overall = labels.mean(axis=0, dtype=np.float64)
    return _mean([np.abs(labels[rows].mean(axis=0, dtype=np.float64) - overall).mean() for rows in shards])


def _mean_shift(values: Column, shards: Sequence[Ints]) -> float | None:
    """Mean over the shards of |mean_k - mean| / sd; None if all values are equal."""
    if values.min() == values.max():
        return None
    values = values.astype(np.float64)
    mean, spread = values.mean(), values.std()
    return _mean([abs(values[rows].mean() - mean) / spread for rows in shards])


def _mean(numbers: Sequence[float]) -> float:
    return float(np.mean(numbers)) if numbers else 0.0


def majorities(train_labels: Ints, split: Split) -> dict[str, Ints]:
    """Answers for the test rows that need no model, (N,) by name. Ties go to the lowest id.

    majority: the most frequent training class. own_majority: each device's own most frequent one, for its test rows.
    Always compare personal scores with the second: under label skew it is far above the first although nothing is
    learned.
    """
    own = np.empty(sum(map(len, split.test)), np.int64)
    for train, test in zip(split.train, split.test, strict=True):
        own[test] = np.bincount(train_labels[train]).argmax()
    return {"majority": np.full_like(own, np.bincount(train_labels).argmax()), "own_majority": own}


def r2(values: Values, predicted: Values) -> float | None:
    """1 - sum (y - f)^2 / sum (y - mean y)^2: 1 is perfect, 0 as good as the mean of y; None if all y are equal."""
    spread = np.square(values - values.mean(dtype=np.float64)).sum(dtype=np.float64)
    missed = np.square(values.astype(np.float64) - predicted).sum()
    return float(1 - missed / spread) if spread > 0 else None


def mean_r2(train_values: Values, test_values: Values) -> float | None:
    """R2 of always predicting the mean of the training values."""
    return r2(test_values, np.full(len(test_values), train_values.mean(dtype=np.float64)))


def own_mean_r2(train_values: Values, test_values: Values, split: Split) -> float | None:
    """R2 when each device predicts the mean of its own training values for its test rows, over all rows."""
    said = np.zeros(len(test_values))
    for train, test in zip(split.train, split.test, strict=True):
        if len(test):
            said[test] = train_values[train].mean(dtype=np.float64)
    return r2(test_values, said)
