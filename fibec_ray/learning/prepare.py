"""From a task's rows to a federation on disk: load, deal to devices, encode, save; called before any actor starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fibec_ray.data.dense import DenseSet
from fibec_ray.data.encode import encode, label_word_ids
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.data.heterogeneity import (
    Ints,
    heterogeneity,
    majority_accuracy,
    mean_r2,
    own_majority_accuracy,
    own_mean_r2,
)
from fibec_ray.data.partition import Partition
from fibec_ray.data.source import DataConfig, Points, effective_task, load, load_points
from fibec_ray.data.split import Split
from fibec_ray.data.tasks import Task
from fibec_ray.learning.federation import Federation, Rows
from fibec_ray.models.backbone import check_sizes, load_tokenizer
from fibec_ray.models.nets import Net
from fibec_ray.models.spec import Backbone


@dataclass(frozen=True)
class Prepared:
    num_classes: int
    """scores that a model gives; 1 in a regression"""
    label_words: tuple[int, ...] | None
    anchors: dict[str, float]
    """accuracy of trivial predictors on the test set: `majority` class, each device's `own_majority` class; in a
    regression R2 of the `mean` and of each device's `own_mean`"""
    heterogeneity: dict[str, float]


def prepare_federation(
    task: Task,
    data: DataConfig,
    partition: Partition,
    backbone: Backbone | Net,
    num_devices: int,
    seed: int,
    folder: Path,
    num_virtual: int = 0,
    pooled: bool = False,
) -> Prepared:
    """Writes the federation's data to `folder`. Raises DataError, ConfigError or ModelError for what does not fit.

    num_virtual: tokens that the PEFT kind puts before those of a sample. pooled: one device has all rows; the anchors
    and the heterogeneity are those of the federation all the same.
    """
    if isinstance(backbone, Net):
        return _prepare_points(task, data, partition, backbone, num_devices, seed, folder, pooled)
    task = effective_task(task, data)
    train, test = load(task, data, seed)
    split = partition.split(train.labels, test.labels, task.num_classes, num_devices, seed)
    tokenizer, mode = load_tokenizer(backbone), backbone.encode_mode
    check_sizes(backbone, tokenizer, data.max_length, num_virtual)
    words = None if mode == "plain" else tuple(label_word_ids(task, tokenizer, mode))
    encoded = [encode(examples, task, tokenizer, mode, data.max_length) for examples in (train, test)]
    Federation(encoded[0], encoded[1], *_rows(encoded, split, pooled)).save(folder)
    return Prepared(
        task.num_classes,
        words,
        _accuracies(train.labels, test.labels, split),
        heterogeneity(train.labels, [np.asarray(rows) for rows in split.train], task.num_classes),
    )


def _prepare_points(
    task: Task,
    data: DataConfig,
    partition: Partition,
    net: Net,
    num_devices: int,
    seed: int,
    folder: Path,
    pooled: bool,
) -> Prepared:
    """The same for samples that are no text."""
    train, test = load_points(task, data, seed)
    net.check(train.features.shape[1:])
    num_labels = data.regression.num_regions if task.kind == "regression" else task.num_classes
    split = partition.split(train.labels, test.labels, num_labels, num_devices, seed)
    sets = [DenseSet.of(train), DenseSet.of(test)]
    Federation(sets[0], sets[1], *_rows(sets, split, pooled)).save(folder)
    found = heterogeneity(train.labels, [np.asarray(rows) for rows in split.train], num_labels)
    return Prepared(task.num_classes, None, _anchors(train, test, split), found)


def _rows(sets: Sequence[EncodedSet | DenseSet], split: Split, pooled: bool) -> list[Sequence[Rows]]:
    """Those of each device, in both sets."""
    return [[np.arange(part.num_samples)] for part in sets] if pooled else [split.train, split.test]


def _accuracies(train: Ints, test: Ints, split: Split) -> dict[str, float]:
    return {"majority": majority_accuracy(train, test), "own_majority": own_majority_accuracy(train, test, split)}


def _anchors(train: Points, test: Points, split: Split) -> dict[str, float]:
    if train.values is None or test.values is None:
        return _accuracies(train.labels, test.labels, split)
    found = {
        "mean": mean_r2(train.values, test.values),
        "own_mean": own_mean_r2(train.values, test.values, split),
    }
    return {name: value for name, value in found.items() if value is not None}
