"""Measures how much the devices' shards differ, and the scores of trivial baselines.

In a regression the labels are regions of the domain, and the targets are values (N,). K devices, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.dealing import Ints, Split

Values = NDArray[np.floating[Any]]


def heterogeneity(labels: Ints, shards: list[Ints], num_classes: int) -> dict[str, float]:
    """label_tv_mean: mean over non-empty devices of (1/2) sum_c |p_k(c) - p(c)|, 0 (all alike) to nearly 1.

    smallest_shard, largest_shard: in samples, over all devices.
    """
    overall = np.bincount(labels, minlength=num_classes) / max(len(labels), 1)
    counts = np.stack([np.bincount(labels[rows], minlength=num_classes) for rows in shards])
    sizes = counts.sum(axis=1)
    marginals = counts[sizes > 0] / sizes[sizes > 0, None]
    distances = 0.5 * np.abs(marginals - overall).sum(axis=1)
    return {
        "label_tv_mean": float(distances.mean()) if len(distances) else 0.0,
        "smallest_shard": float(sizes.min()),
        "largest_shard": float(sizes.max()),
    }


def majority_accuracy(train_labels: Ints, test_labels: Ints) -> float:
    """Accuracy of always predicting the most frequent training class (ties: the lowest id)."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())


def own_majority_accuracy(train_labels: Ints, test_labels: Ints, split: Split) -> float:
    """Accuracy when each device predicts its own most frequent training class for its test rows, over all rows.

    Always compare personal accuracy with this baseline: under label skew it is far above `majority_accuracy` although
    nothing is learned.
    """
    hits = sum(
        int((test_labels[test] == np.bincount(train_labels[train]).argmax()).sum())
        for train, test in zip(split.train, split.test, strict=True)
    )
    return hits / len(test_labels)


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
        said[test] = train_values[train].mean(dtype=np.float64)
    return r2(test_values, said)
