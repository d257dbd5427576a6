"""Data sets of made-up rows, in the files that packaged tasks read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import yaml

from fibec_ray.config.names import packaged


def make_sets(names: Iterable[str], num_rows: int, folder: Path) -> Path:
    """Write FOLDER/TASK/train.parquet and so on: `num_rows` rows in every split. Returns the folder."""
    for name in names:
        task = yaml.safe_load(packaged("tasks")[name].read_text())
        classes = len(task["label_names"])
        columns = {column: [f"{column} {row} good bad" for row in range(num_rows)] for column in task["text_columns"]}
        rows = pl.DataFrame(columns | {task["label_column"]: [row % classes for row in range(num_rows)]})
        (folder / name).mkdir()
        for split in (*task["train_splits"], task["eval_split"]):
            rows.write_parquet(folder / name / f"{split}.parquet")
    return folder
