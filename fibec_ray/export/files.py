"""Inputs from a table on disk, and predictions into one: what `fibec-ray predict --file` reads and writes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fibec_ray.data.columns import texts_of
from fibec_ray.data.layout import Layout
from fibec_ray.data.readers import SUFFIXES, read_table, suffix_of
from fibec_ray.errors import DataError
from fibec_ray.files.run_dir import write_text
from fibec_ray.runs.saved_model import SavedModel
from fibec_ray.tasks.base import NOT_FROM_TABLES
from fibec_ray.tasks.prediction import Prediction

WRITTEN = (".csv", ".jsonl")


def read_inputs(path: Path, about: SavedModel, columns: Sequence[str] = ()) -> tuple[list[str], list[Any]]:
    """The names of the text columns, and a text (or a tuple of texts) for each row.

    columns: which hold the text; (): those of the run's task. Raises DataError for a file or column that is not there.
    """
    if not about.task.typed_columns:
        raise DataError(f"--file: {NOT_FROM_TABLES}")
    known = [suffix for suffixes in SUFFIXES.values() for suffix in suffixes]
    if suffix_of(path) not in known:
        raise DataError(f"--file {path}: its name must end in one of {', '.join(known)}")
    if not path.is_file():
        raise DataError(f"--file {path}: no such file")
    names: list[str] = []

    def choose(there: Sequence[str]) -> tuple[str, ...]:
        try:
            names.extend(about.task.input_columns(list(there), columns))
        except DataError as error:
            raise DataError(f"--file {path}: {error}") from error
        return tuple(names)

    table = read_table(path, Layout(), choose)
    other = "name another column with --columns"
    found = [texts_of(table[name], f"{path}, column '{name}'", "fill it in", other) for name in names]
    return names, found[0] if len(found) == 1 else list(zip(*found, strict=True))


def write_predictions(path: Path, names: Sequence[str], inputs: Sequence[Any], found: Sequence[Prediction]) -> None:
    """A row for each input: its texts, then `label` and `score`, or `text`. Raises DataError for another suffix.

    JSON lines hold the probability of every class too.
    """
    refuse_other_suffix(path)
    rows = [
        dict(zip(names, (value,) if isinstance(value, str) else value, strict=True)) | prediction.plain()
        for value, prediction in zip(inputs, found, strict=True)
    ]
    if path.suffix.lower() == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    text = io.StringIO()
    header = list(dict.fromkeys(key for row in rows for key in row if key != "scores")) or [*names]
    for row in rows:
        if "labels" in row:
            row["labels"] = " ".join(row["labels"])
    writer = csv.DictWriter(text, header, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def refuse_other_suffix(path: Path) -> None:
    """Raise DataError for an output file whose ending is not one that can be written."""
    if path.suffix.lower() not in WRITTEN:
        raise DataError(f"--out {path}: its name must end in {' or '.join(WRITTEN)}")
