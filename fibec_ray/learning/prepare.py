"""From a task's rows to a federation on disk: load, deal to devices, encode, save; called before any actor starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fibec_ray.data.encode import encode, label_word_ids
from fibec_ray.data.heterogeneity import heterogeneity, majority_accuracy, own_majority_accuracy
from fibec_ray.data.partition import Partition
from fibec_ray.data.source import DataConfig, effective_task, load
from fibec_ray.data.tasks import Task
from fibec_ray.learning.federation import Federation
from fibec_ray.models.backbone import check_sizes, load_tokenizer
from fibec_ray.models.spec import Backbone


@dataclass(frozen=True)
class Prepared:
    num_classes: int
    label_words: tuple[int, ...] | None
    anchors: dict[str, float]
    """accuracy of trivial predictors on the test set: `majority` class, each device's `own_majority` class"""
    heterogeneity: dict[str, float]


def prepare_federation(
    task: Task,
    data: DataConfig,
    partition: Partition,
    backbone: Backbone,
    num_devices: int,
    seed: int,
    folder: Path,
    pooled: bool = False,
) -> Prepared:
    """Writes the federation's data to `folder`. Raises DataError, ConfigError or ModelError for what does not fit.

    pooled: one device has all rows; the anchors and the heterogeneity are those of the federation all the same.
    """
    task = effective_task(task, data)
    train, test = load(task, data, seed)
    split = partition.split(train.labels, test.labels, task.num_classes, num_devices, seed)
    tokenizer, mode = load_tokenizer(backbone), backbone.encode_mode
    check_sizes(backbone, tokenizer, data.max_length)
    words = None if mode == "plain" else tuple(label_word_ids(task, tokenizer, mode))
    encoded = [encode(examples, task, tokenizer, mode, data.max_length) for examples in (train, test)]
    rows = [[np.arange(part.num_samples)] for part in encoded] if pooled else [split.train, split.test]
    Federation(encoded[0], encoded[1], *rows).save(folder)
    return Prepared(
        task.num_classes,
        words,
        {
            "majority": majority_accuracy(train.labels, test.labels),
            "own_majority": own_majority_accuracy(train.labels, test.labels, split),
        },
        heterogeneity(train.labels, [np.asarray(rows) for rows in split.train], task.num_classes),
    )
