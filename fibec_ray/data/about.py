"""What the first lines of a run say about a user's own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fibec_ray.data.described import Classes, OnHub, Prompted, Splits
from fibec_ray.data.examples import Examples
from fibec_ray.data.layout import encoding_of
from fibec_ray.data.readers import format_of
from fibec_ray.data.settings import TEST_FRACTION, DataConfig
from fibec_ray.data.splits import files
from fibec_ray.files.storage import is_url

_SHOWN = 10
"""classes that are named"""


class Described(Classes, Prompted, Splits, OnHub, Protocol):
    """A classification of texts from files."""

    @property
    def label_column(self) -> str:
        """Column of the labels."""


def about_rows(task: Described, config: DataConfig, train: Examples, test: Examples) -> list[str]:
    """The columns and classes that are used, where the test rows come from, and what was guessed or left out.

    Empty for rows from the hub.
    """
    if not config.reads_files:
        return []
    said = []
    if task.hub is None:
        texts = " and ".join(f"'{column}'" for column in task.text_columns)
        names = ", ".join(task.label_names[:_SHOWN]) + (", ..." if len(task.label_names) > _SHOWN else "")
        said.append(f"text from {texts}, {len(task.label_names)} classes from '{task.label_column}' ({names})")
        said += _alike(task.label_names)
    train_files, test_files = ([], []) if is_url(config.path or "") else files(task, config)
    if task.eval_split is None and config.test is None:
        fraction = TEST_FRACTION if config.test_fraction is None else config.test_fraction
        how = "the same share of each label" if train.users is None else "the same share of each user's rows"
        said.append(
            f"{len(train):,} training rows and {len(test):,} test rows: no test file, so {fraction:.0%} of the rows "
            f"were held out, {how} (data.test_fraction, seed)"
        )
    elif task.hub is None:
        where = f" from {', '.join(path.name for path in test_files[:2])}" if test_files else ""
        said.append(f"{len(train):,} training rows and {len(test):,} test rows{where}")
    if train.users is not None and (unknown := len(set(test.users or ()) - set(train.users))):
        said.append(f"{unknown:,} users have test rows only; those rows are dealt evenly")
    origins = [part.origin for part in (train, test) if part.origin is not None]
    files_read = {origin.files: origin.dropped for origin in origins}  # held-out rows come from the same files
    dropped = sum(files_read.values())
    if dropped:
        said.append(f"{dropped:,} rows without a text or a label left out (data.drop_missing)")
    return said + [note for path in (*train_files, *test_files) if (note := _guessed(path, config))]


def _alike(names: Sequence[str]) -> list[str]:
    """A note on each group of classes that may be spellings of one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(name.casefold().split()), []).append(name)
    return [
        f"the classes {' and '.join(map(repr, group))} differ only in capital letters or blanks; if they are one "
        "class, spell it the same in all rows"
        for group in groups.values()
        if len(group) > 1
    ]


def _guessed(path: Path, config: DataConfig) -> str:
    """The encoding that is no more than likely."""
    if config.encoding != "auto" or format_of(path, config.layout) not in ("csv", "tsv"):
        return ""
    codec = encoding_of(path, "auto")
    return f"{path.name} is not UTF-8 and was read as {codec} (data.encoding)" if codec == "cp1252" else ""
