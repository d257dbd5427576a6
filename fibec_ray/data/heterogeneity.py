"""How different the devices' shards are, and what knowing nothing but labels achieves. For the run's first log lines.

K devices, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.split import Split

Ints = NDArray[np.int64]


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
