"""Inputs from a table on disk, and predictions into one: what `fibec-ray predict --file` reads and writes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fibec_ray.data.columns import texts_of
from fibec_ray.data.instructions import COMMON
from fibec_ray.data.layout import Layout
from fibec_ray.data.readers import SUFFIXES, read_table, suffix_of
from fibec_ray.errors import DataError
from fibec_ray.export.predict import Prediction
from fibec_ray.files.run_dir import write_text
from fibec_ray.runs.saved_model import SavedModel

WRITTEN = (".csv", ".jsonl")
DIGITS = 6
"""of probabilities"""


def read_inputs(path: Path, about: SavedModel, columns: Sequence[str] = ()) -> tuple[list[str], list[Any]]:
    """The names of the text columns, and a text (or a tuple of texts) for each row.

    columns: which hold the text; (): those of the run's task. Raises DataError for a file or column that is not there.
    """
    if not about.is_text:
        raise DataError("--file: this model predicts from numbers; use fibec_ray.load(RUN).predict(ARRAY) in Python")
    known = [suffix for suffixes in SUFFIXES.values() for suffix in suffixes]
    if suffix_of(path) not in known:
        raise DataError(f"--file {path}: its name must end in one of {', '.join(known)}")
    if not path.is_file():
        raise DataError(f"--file {path}: no such file")
    names: list[str] = []

    def choose(there: Sequence[str]) -> tuple[str, ...]:
        names.extend(_chosen(list(there), about, columns, path))
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
        dict(zip(names, (value,) if isinstance(value, str) else value, strict=True)) | plain(prediction)
        for value, prediction in zip(inputs, found, strict=True)
    ]
    if path.suffix.lower() == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    text = io.StringIO()
    header = [key for key in rows[0] if key != "scores"] if rows else [*names]
    writer = csv.DictWriter(text, header, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def refuse_other_suffix(path: Path) -> None:
    """Raise DataError for an output file whose ending is not one that can be written."""
    if path.suffix.lower() not in WRITTEN:
        raise DataError(f"--out {path}: its name must end in {' or '.join(WRITTEN)}")


def plain(prediction: Prediction) -> dict[str, Any]:
    """What a prediction holds, as plain values."""
    values = {name: getattr(prediction, name) for name in ("label", "score", "scores", "text", "value")}
    values["score"] = None if prediction.score is None else round(prediction.score, DIGITS)
    values["scores"] = {name: round(score, DIGITS) for name, score in prediction.scores.items()}
    return {name: value for name, value in values.items() if value not in (None, {})}


def _chosen(there: list[str], about: SavedModel, columns: Sequence[str], path: Path) -> list[str]:
    wanted = list(columns) or _usual(there, about)
    count = max(1, len(about.prompts.text_columns))
    missing = [name for name in wanted if name not in there]
    if missing or len(wanted) < count or (about.predicts == "classes" and len(wanted) != count):
        which = "two columns" if count == 2 else "the column"
        raise DataError(
            f"--file {path}: has the columns {', '.join(there)}; name {which} with the text: --columns "
            + " ".join(["NAME"] * count)
        )
    return wanted


def _usual(there: list[str], about: SavedModel) -> list[str]:
    """The columns of the run's task, or the only ones that there are."""
    if about.predicts == "texts":
        fields = ("instruction", "input")
        found = [next((name for name in COMMON[field] if name in there), None) for field in fields]
        return [name for name in found if name is not None]
    wanted = list(about.prompts.text_columns)
    return there if len(there) == len(wanted) and not set(wanted) <= set(there) else wanted
