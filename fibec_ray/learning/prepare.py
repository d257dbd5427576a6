"""Builds a federation on disk from a task's rows: load, assign to devices, encode, save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fibec_ray.answers import Answers
from fibec_ray.data.about import about_rows
from fibec_ray.data.dealing import Ints, Split
from fibec_ray.data.dense import DenseSet
from fibec_ray.data.encode import encode, label_word_ids
from fibec_ray.data.encode_instructions import Cut, encode_instructions
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.data.examples import Examples, Instructions, Points
from fibec_ray.data.heterogeneity import (
    heterogeneity,
    majority_accuracy,
    mean_r2,
    own_majority_accuracy,
    own_mean_r2,
)
from fibec_ray.data.instruction_source import load_instructions
from fibec_ray.data.partition import WITHOUT_LABELS, Partition
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.source import effective_task, load, load_points
from fibec_ray.data.stamps import Stamp, stamps_of
from fibec_ray.data.tasks import Task
from fibec_ray.encoder import Encoder
from fibec_ray.errors import ConfigError
from fibec_ray.learning.federation import Federation, Rows
from fibec_ray.models.base import AnyBackbone


@dataclass(frozen=True)
class Prepared:
    """What a run needs to know about its prepared data."""

    num_classes: int
    """outputs of a model; 1 for regression, 0 for text answers"""
    label_words: tuple[int, ...] | None
    """token ids (C,) of the verbaliser; None without one"""
    anchors: dict[str, float]
    """Baselines on the test set: accuracy of the `majority` class and of each device's `own_majority` class (for
    text answers, the most frequent answer); for a regression, R2 of the `mean` and of each device's `own_mean`
    """
    heterogeneity: dict[str, float] = field(default_factory=dict)
    note: str = ""
    """what the user should know about the data"""
    sources: tuple[Stamp, ...] = ()
    """the files that the rows came from, with their sizes and times when they were read"""

    def answers(self, task: Task) -> Answers:
        """What a model gives for a sample of the task."""
        if task.answers_in_text:
            return Answers(likelihood="tokens", num_scores=0, readout="response")
        likelihood = "normal" if task.kind == "regression" else "categorical"
        return Answers(likelihood=likelihood, num_scores=self.num_classes, label_words=self.label_words)


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

    def split(self, train: Examples | Instructions | Points, test: Any, num_labels: int) -> Split:
        """Deal the rows of both sets to devices, by their labels or users."""
        users = () if self.partition.user_column is None else ((train.users, test.users),)  # type: ignore[union-attr]
        return self.partition.split(train.labels, test.labels, num_labels, self.num_devices, self.seed, *users)


@dataclass(frozen=True)
class _Made:
    """Both encoded sets, their split over devices, and the training labels used for the split."""

    sets: Sequence[EncodedSet | DenseSet]
    split: Split
    labels: Ints
    num_labels: int


def prepare_federation(recipe: Recipe, folder: Path) -> Prepared:
    """Write the federation's data to `folder`. Raises DataError, ConfigError or ModelError for settings that do not
    fit.
    """
    recipe.backbone.check(recipe.task.answers_in_text)
    if not recipe.task.is_text:
        made, prepared = _points(recipe, recipe.backbone)
    else:
        made, prepared = (_texts if recipe.task.answers_in_text else _classes)(recipe, recipe.backbone)
    split, rows = made.split, [[np.arange(part.num_samples)] for part in made.sets]
    dealt: list[Sequence[Rows]] = [*rows] if recipe.pooled else [split.train, split.test]
    Federation(made.sets[0], made.sets[1], *dealt).save(folder)
    found = heterogeneity(made.labels, [np.asarray(each) for each in split.train], made.num_labels)
    return replace(prepared, heterogeneity=found)


def _classes(recipe: Recipe, backbone: AnyBackbone) -> tuple[_Made, Prepared]:
    """Prepare texts with classes."""
    data, max_length = recipe.data, recipe.data.max_length
    sources, task = stamps_of(recipe.task, data), effective_task(recipe.task, data)
    train, test = load(task, data, recipe.seed, recipe.partition.user_column)
    split = recipe.split(train, test, task.num_classes)
    encoder = backbone.encoder(max_length, recipe.num_virtual)
    tokenizer, mode = encoder.tokenizer, encoder.mode
    words = None if mode == "plain" else tuple(label_word_ids(task, tokenizer, mode))
    encoded = [encode(examples, task, tokenizer, mode, max_length) for examples in (train, test)]
    sets = backbone.fit(encoded, encoder, words or ())
    about = about_rows(task, data, train, test)
    note = _said(*about, *backbone.notes(task.num_classes), _about_cut_samples(sets[0], sets[1], max_length))
    anchors = _accuracies(train.labels, test.labels, split)
    prepared = Prepared(task.num_classes, words, anchors, note=note, sources=sources)
    return _Made(sets, split, train.labels, task.num_classes), prepared


def _texts(recipe: Recipe, backbone: AnyBackbone) -> tuple[_Made, Prepared]:
    """Prepare texts with text answers; their labels are categories."""
    task, data, partition, max_length = recipe.task, recipe.data, recipe.partition, recipe.data.max_length
    sources = stamps_of(task, data)
    train, test = load_instructions(task, data, recipe.seed, partition.user_column)
    if partition.deals_by_label and not train.has_categories:
        raise ConfigError(
            f"partition: {partition.kind} splits by category, but the rows of task {task.name} have none; set "
            f"data.columns.category to their column, or partition to one of: {', '.join(sorted(WITHOUT_LABELS))}"
        )
    split = recipe.split(train, test, len(train.categories))
    encoder = backbone.encoder(max_length, recipe.num_virtual)
    form = effective_task(task, data).format
    encoded, cuts = zip(
        *(encode_instructions(rows, form, encoder.tokenizer, max_length) for rows in (train, test)), strict=True
    )
    numbers = {text: i for i, text in enumerate(dict.fromkeys([*train.responses, *test.responses]))}
    said = [np.array([numbers[text] for text in rows.responses], dtype=np.int64) for rows in (train, test)]
    note = _said(*backbone.notes(0), _about_cuts(cuts, len(train) + len(test), max_length))
    prepared = Prepared(0, None, _accuracies(said[0], said[1], split), note=note, sources=sources)
    return _Made(backbone.fit(encoded, encoder), split, train.labels, len(train.categories)), prepared


def _points(recipe: Recipe, backbone: AnyBackbone) -> tuple[_Made, Prepared]:
    """Prepare samples that are not text."""
    task, data = recipe.task, recipe.data
    train, test = load_points(task, data, recipe.seed)
    num_labels = data.regression.num_regions if task.kind == "regression" else task.num_classes
    split = recipe.split(train, test, num_labels)
    prepared = Prepared(task.num_classes, None, _anchors(train, test, split))
    sets = backbone.fit([DenseSet.of(train), DenseSet.of(test)], Encoder(backbone.reads))
    return _Made(sets, split, train.labels, num_labels), prepared


def _said(*notes: str) -> str:
    """Join the non-empty notes into one line."""
    return "; ".join(note for note in notes if note)


def _about_cut_samples(train: EncodedSet, test: EncodedSet, max_length: int) -> str:
    cuts = [
        f"{part.num_cut} of {part.num_samples} {name} samples ({_percent(part.num_cut / part.num_samples)})"
        for name, part in (("training", train), ("test", test))
        if part.num_cut
    ]
    return f"{' and '.join(cuts)} were truncated to data.max_length={max_length}" if cuts else ""


def _percent(share: float) -> str:
    return "less than 1%" if share < 0.01 else f"{share:.0%}"


def _about_cuts(cuts: Sequence[Cut], num_samples: int, max_length: int) -> str:
    prompts, responses = sum(cut.prompts for cut in cuts), sum(cut.responses for cut in cuts)
    if not prompts + responses:
        return ""
    return (
        f"{prompts} prompts and {responses} responses of {num_samples} samples were truncated to "
        f"data.max_length={max_length}"
    )


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
