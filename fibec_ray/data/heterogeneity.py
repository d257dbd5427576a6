"""How different the devices' shards are, and the scores of baselines that know labels alone.

A regression has regions of its domain for labels, and values (N,) to be predicted.

K devices, C classes.
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
    """Accuracy of always saying the most frequent training class (the lowest id among equals)."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())


def own_majority_accuracy(train_labels: Ints, test_labels: Ints, split: Split) -> float:
    """Accuracy where each device says its own most frequent training class on its own test rows, all rows pooled.

    The bar for personal models: under label skew it is far above `majority_accuracy`, without any learning.
    """
    hits = sum(
        int((test_labels[test] == np.bincount(train_labels[train]).argmax()).sum())
        for train, test in zip(split.train, split.test, strict=True)
    )
    return hits / len(test_labels)


def r2(values: Values, predicted: Values) -> float | None:
    """1 - sum (y - f)^2 / sum (y - mean y)^2: 1 is perfect, 0 the mean of y; None where all y are one value."""
    spread = np.square(values - values.mean(dtype=np.float64)).sum(dtype=np.float64)
    missed = np.square(values.astype(np.float64) - predicted).sum()
    return float(1 - missed / spread) if spread > 0 else None


def mean_r2(train_values: Values, test_values: Values) -> float | None:
    """R2 of always saying the mean of the training values."""
    return r2(test_values, np.full(len(test_values), train_values.mean(dtype=np.float64)))


def own_mean_r2(train_values: Values, test_values: Values, split: Split) -> float | None:
    """R2 where each device says the mean of its own training values on its own test rows, all rows pooled."""
    said = np.zeros(len(test_values))
    for train, test in zip(split.train, split.test, strict=True):
        said[test] = train_values[train].mean(dtype=np.float64)
    return r2(test_values, said)
