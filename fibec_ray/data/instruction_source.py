"""Loads the rows of a task that is answered in text: from local files, the hub, or the embedded set."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fibec_ray.data import exercises, hub
from fibec_ray.data.columns import require_columns, values_of
from fibec_ray.data.examples import Instructions
from fibec_ray.data.held_out import held_out
from fibec_ray.data.instructions import InstructionFormat, chosen_columns, instructions_of
from fibec_ray.data.readers import read_table
from fibec_ray.data.settings import TEST_FRACTION_INSTRUCTIONS, DataConfig
from fibec_ray.data.source import effective_task, nearby
from fibec_ray.data.splits import files
from fibec_ray.data.tasks import Task
from fibec_ray.errors import DataError
from fibec_ray.seeds import numpy_generator


def load_instructions(
    task: Task, config: DataConfig, seed: int, user_column: str | None = None
) -> tuple[Instructions, Instructions]:
    """The (train, test) rows, with the same categories for both.

    user_column: its values become `users`. Raises DataError for each setting, file, column or row that does not fit.
    """
    actual = effective_task(task, config)
    if task.kind == "exercises":
        settings = config.exercises
        train = exercises.generate(settings.num_train, seed, "train", settings)
        test = exercises.generate(settings.num_test, seed, "test", settings)
    elif config.reads_files:
        with nearby(config.path) as path:
            train_files, test_files = files(actual, config.model_copy(update={"path": path}))
            parts = [_read_file(each, config, actual.format, user_column) for each in (*train_files, *test_files)]
            train = Instructions.join(parts[: len(train_files)])
            named = Instructions.join(parts[len(train_files) :]) if test_files else None
        train, test = _with_test(train, named, config, seed)
    else:
        train = Instructions.join([_read_hub(split, actual, config, user_column) for split in actual.train_splits])
        named = _read_hub(actual.eval_split, actual, config, user_column) if actual.eval_split else None
        train, test = _with_test(train, named, config, seed)
    train, test = Instructions.alike([train, test])
    return train.at_most(config.max_train, seed, "train"), test.at_most(config.max_test, seed, "test")


def _with_test(
    train: Instructions, test: Instructions | None, config: DataConfig, seed: int
) -> tuple[Instructions, Instructions]:
    """Hold rows out if no test rows are named."""
    if test is not None:
        return train, test
    fraction = TEST_FRACTION_INSTRUCTIONS if config.test_fraction is None else config.test_fraction
    if train.users is not None:
        kept, tested = held_out(train.users, fraction, seed)
        return train.take(kept), train.take(tested)
    if len(train) < 2:
        raise DataError("data.test_fraction: one row cannot be shared between training and test; name the test rows")
    order = numpy_generator(seed, "held_out").permutation(len(train)).astype(np.int64)
    count = min(len(train) - 1, max(1, round(fraction * len(train))))
    return train.take(np.sort(order[count:])), train.take(np.sort(order[:count]))


def _read_file(path: Path, config: DataConfig, form: InstructionFormat, user_column: str | None) -> Instructions:
    return _rows(partial(read_table, path, config.layout), form, user_column, str(path))


def _read_hub(split: str, task: Task, config: DataConfig, user_column: str | None) -> Instructions:
    read = partial(hub.load_columns, task, split, config.revision)
    return _rows(read, task.format, user_column, hub.name_of(task, split, config.revision))


def _rows(read: Any, form: InstructionFormat, user_column: str | None, where: str) -> Instructions:
    """read: (choice of columns) -> a table of them."""
    chosen: dict[str, str] = {}

    def choose(there: list[str]) -> tuple[str, ...]:
        chosen.update(chosen_columns(form.columns, there, where))
        users = require_columns(where, (user_column,), there, "set partition.column") if user_column else ()
        return tuple(dict.fromkeys((*chosen.values(), *users)))

    table = read(choose)
    found = instructions_of(table, chosen, where, form.drop_empty)
    if user_column is None or found.origin is None:
        return found
    users = values_of(table[user_column], f"{where}, column '{user_column}'")
    return replace(found, users=[users[row] for row in found.origin.row])
