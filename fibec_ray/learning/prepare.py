"""Builds a federation on disk from a task's rows: load, assign to devices, encode, save."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fibec_ray.answers import Answers
from fibec_ray.data.dealing import Split
from fibec_ray.data.heterogeneity import heterogeneity
from fibec_ray.data.partition import WITHOUT_LABELS
from fibec_ray.data.partition_base import Partition
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.stamps import Stamp
from fibec_ray.errors import ConfigError
from fibec_ray.learning.federation import Federation, Rows
from fibec_ray.models.base import AnyBackbone
from fibec_ray.tasks import Task
from fibec_ray.tasks.base import at_most


@dataclass(frozen=True)
class Prepared:
    """What a run needs to know about its prepared data."""

    num_classes: int
    """scores that a model gives for a sample; 1 for a value, 0 for answers in text"""
    label_words: tuple[int, ...] | None
    """token ids (C,) of the verbaliser; None without one"""
    anchors: dict[str, float]
    """baselines on the test set that need no model, by name (`Task.anchors`)"""
    heterogeneity: dict[str, float] = field(default_factory=dict)
    note: str = ""
    """what the user should know about the data"""
    sources: tuple[Stamp, ...] = ()
    """the files that the rows came from, with their sizes and times when they were read"""

    def answers(self, task: Task) -> Answers:
        """What a model of this task gives for a sample."""
        return task.answers(self.num_classes, self.label_words)


@dataclass(frozen=True)
class Recipe:
    """The rows of a federation, their split over devices, and the model they are encoded for."""

    task: Task
    data: DataConfig
    partition: Partition
    backbone: AnyBackbone
    num_devices: int
    seed: int
    num_virtual: int = 0
    """virtual tokens that the PEFT kind puts before a sample"""
    pooled: bool = False
    """True if one device has all rows; baselines and heterogeneity are still those of the federation"""


def prepare_federation(recipe: Recipe, folder: Path) -> Prepared:
    """Write the federation's data to `folder`. Raises DataError, ConfigError or ModelError for settings that do not
    fit.
    """
    data, backbone = recipe.data, recipe.backbone
    task = recipe.task.effective(data)
    backbone.check(task.writes_text)
    sources = task.stamps(data)
    train, test = at_most(task.load(data, recipe.seed, recipe.partition.user_column), data, recipe.seed)
    split = _deal(recipe, task, train, test)
    encoder = backbone.encoder(data.max_length, recipe.num_virtual)
    words = task.label_words(encoder)
    sets = backbone.fit([task.encode(rows, encoder) for rows in (train, test)], encoder, words or ())
    notes = [*task.notes(data, train, test), *backbone.notes(task.num_scores), task.about_cuts(sets, data.max_length)]
    dealt: list[list[Rows]] = [split.train, split.test]
    if recipe.pooled:
        dealt = [[np.arange(part.num_samples)] for part in sets]
    Federation(sets[0], sets[1], *dealt).save(folder)
    return Prepared(
        task.num_scores,
        words,
        task.anchors(train, test, split),
        heterogeneity(split.train, {**task.compared(train), "length": sets[0].lengths * 1.0, **split.groups}),
        "; ".join(note for note in notes if note),
        sources,
    )


def _deal(recipe: Recipe, task: Task, train: Any, test: Any) -> Split:
    """Deal the rows of both sets to devices, by their labels, users or texts."""
    partition, num_groups = recipe.partition, task.num_groups(train)
    if num_groups is None and partition.deals_by_label:
        raise ConfigError(
            f"partition: {partition.kind} deals rows by label, but {task.no_groups()}, or partition to one of: "
            f"{', '.join(sorted(WITHOUT_LABELS))}"
        )
    return partition.deal(train, test, num_groups or 1, recipe.num_devices, recipe.seed)
