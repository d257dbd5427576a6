"""From a task's rows to a federation on disk: load, deal to devices, encode, save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fibec_ray.data.dealing import Split
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
from fibec_ray.data.partition import WITHOUT_LABELS, Partition
from fibec_ray.data.respond import Cut, encode_instructions
from fibec_ray.data.source import DataConfig, Points, effective_task, load, load_points
from fibec_ray.data.stamps import Stamp, stamps_of
from fibec_ray.data.tasks import Task
from fibec_ray.data.told import load_instructions
from fibec_ray.errors import ConfigError
from fibec_ray.learning.federation import Federation, Rows
from fibec_ray.models.architecture import check_causal, check_supported, notes
from fibec_ray.models.backbone import load_tokenizer
from fibec_ray.models.nets import Net
from fibec_ray.models.sizes import check_ids, check_sizes
from fibec_ray.models.spec import Backbone
from fibec_ray.models.token_types import takes_types


@dataclass(frozen=True)
class Prepared:
    num_classes: int
    """scores that a model gives; 1 in a regression, 0 where answers are texts"""
    label_words: tuple[int, ...] | None
    anchors: dict[str, float]
    """accuracy of trivial predictors on the test set: `majority` class, each device's `own_majority` class (where
    answers are texts the commonest one); in a
    regression R2 of the `mean` and of each device's `own_mean`"""
    heterogeneity: dict[str, float]
    note: str = ""
    """what a person should know of the data"""
    sources: tuple[Stamp, ...] = ()
    """the files that the rows came from, as they were"""


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
    if task.answers_in_text:
        return _prepare_instructions(task, data, partition, backbone, num_devices, seed, folder, num_virtual, pooled)
    sources, task = stamps_of(task, data), effective_task(task, data)
    check_supported(backbone)
    train, test = load(task, data, seed)
    split = partition.split(train.labels, test.labels, task.num_classes, num_devices, seed)
    tokenizer, mode = load_tokenizer(backbone), backbone.encode_mode
    num_rows = check_sizes(backbone, tokenizer, data.max_length, num_virtual)
    words = None if mode == "plain" else tuple(label_word_ids(task, tokenizer, mode))
    encoded = [encode(examples, task, tokenizer, mode, data.max_length) for examples in (train, test)]
    check_ids(num_rows, tokenizer, _used(encoded, words or ()))
    encoded = with_types(encoded, backbone)
    Federation(encoded[0], encoded[1], *_rows(encoded, split, pooled)).save(folder)
    return Prepared(
        task.num_classes,
        words,
        _accuracies(train.labels, test.labels, split),
        heterogeneity(train.labels, [np.asarray(rows) for rows in split.train], task.num_classes),
        _said(*notes(backbone, task.num_classes), _about_cut_samples(encoded[0], encoded[1], data.max_length)),
        sources,
    )


def _prepare_instructions(
    task: Task,
    data: DataConfig,
    partition: Partition,
    backbone: Backbone,
    num_devices: int,
    seed: int,
    folder: Path,
    num_virtual: int,
    pooled: bool,
) -> Prepared:
    """The same for samples that are answered in text: their labels are categories."""
    check_supported(backbone)
    sources = stamps_of(task, data)
    train, test = load_instructions(task, data, seed)
    if partition.deals_by_label and not train.has_categories:
        raise ConfigError(
            f"partition: {partition.kind} deals by category, and the rows of task {task.name} have none; name their "
            f"column with data.columns.category, or set partition to one of: {', '.join(sorted(WITHOUT_LABELS))}"
        )
    num_categories = len(train.categories)
    split = partition.split(train.labels, test.labels, num_categories, num_devices, seed)
    tokenizer = load_tokenizer(backbone)
    num_rows = check_sizes(backbone, tokenizer, data.max_length, num_virtual)
    check_causal(backbone)
    form = effective_task(task, data).format
    encoded, cuts = zip(
        *(encode_instructions(rows, form, tokenizer, data.max_length) for rows in (train, test)), strict=True
    )
    check_ids(num_rows, tokenizer, _used(encoded))
    sets = with_types(encoded, backbone)
    Federation(sets[0], sets[1], *_rows(sets, split, pooled)).save(folder)
    numbers = {text: i for i, text in enumerate(dict.fromkeys([*train.responses, *test.responses]))}
    said = [np.array([numbers[text] for text in rows.responses], dtype=np.int64) for rows in (train, test)]
    found = heterogeneity(train.labels, [np.asarray(rows) for rows in split.train], num_categories)
    note = _said(*notes(backbone, 0), _about_cuts(cuts, len(train) + len(test), data.max_length))
    return Prepared(0, None, _accuracies(said[0], said[1], split), found, note, sources)


def _used(encoded: Sequence[EncodedSet], words: Sequence[int] = ()) -> dict[str, int | None]:
    """The largest token ids that a run will use, by their role."""
    largest = max((int(part.tokens.max()) for part in encoded if part.tokens.size), default=None)
    return {"the token": largest, "the verbaliser's word": max(words, default=None)}


def _said(*notes: str) -> str:
    """One line of those that say something."""
    return "; ".join(note for note in notes if note)


def with_types(sets: Sequence[EncodedSet], backbone: Backbone) -> list[EncodedSet]:
    """The sets with token types if the backbone can tell them apart. Raises ModelError for types that it lacks.

    A model with a table of types takes 0 where it is given none, so that zeros alone are left out.
    """
    highest = max((int(part.types.max(initial=0)) for part in sets if part.types is not None), default=None)
    if highest is not None and takes_types(backbone, highest):
        return list(sets)
    return [replace(part, types=None) for part in sets]


def _about_cut_samples(train: EncodedSet, test: EncodedSet, max_length: int) -> str:
    cuts = [
        f"{part.num_cut} of {part.num_samples} {name} samples ({_percent(part.num_cut / part.num_samples)})"
        for name, part in (("training", train), ("test", test))
        if part.num_cut
    ]
    return f"{' and '.join(cuts)} were cut to fit data.max_length={max_length}" if cuts else ""


def _percent(share: float) -> str:
    return "less than 1%" if share < 0.01 else f"{share:.0%}"


def _about_cuts(cuts: Sequence[Cut], num_samples: int, max_length: int) -> str:
    prompts, responses = sum(cut.prompts for cut in cuts), sum(cut.responses for cut in cuts)
    if not prompts + responses:
        return ""
    return (
        f"{prompts} prompts and {responses} responses of {num_samples} samples were cut to fit "
        f"data.max_length={max_length}"
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
