"""Loads one split from the Hugging Face hub, through `datasets`."""

from __future__ import annotations

from functools import partial
from typing import Any

from fibec_ray.data.columns import Choice, chosen, require_columns
from fibec_ray.data.tasks import Task
from fibec_ray.errors import DataError


def load_split(
    task: Task, split: str, revision: str | None, user_column: str | None = None
) -> tuple[Any, list[str] | None]:
    """The task's text and label columns as a pyarrow.Table, and the class names where the hub has a ClassLabel."""
    columns = tuple(dict.fromkeys((*task.text_columns, task.label_column, *([user_column] if user_column else []))))
    loaded = _load(task, split, revision)
    where, there = name_of(task, split, revision), list(loaded.column_names)
    chosen(partial(require_columns, where, columns), there, where)
    names = getattr(loaded.features[task.label_column], "names", None)
    return loaded.select_columns(list(columns)).with_format("arrow")[:], names


def load_columns(task: Task, split: str, revision: str | None, choose: Choice) -> Any:
    """The chosen columns as a pyarrow.Table."""
    loaded = _load(task, split, revision)
    columns = chosen(choose, list(loaded.column_names), name_of(task, split, revision))
    return loaded.select_columns(list(columns)).with_format("arrow")[:]


def name_of(task: Task, split: str, revision: str | None) -> str:
    """Data set, revision and split, for messages."""
    return f"hub {task.hub}{f' at {revision}' if revision else ''}, split '{split}'"


def _load(task: Task, split: str, revision: str | None) -> Any:
    """Never runs code that comes with a data set (`trust_remote_code` stays off)."""
    import datasets  # half a second; only needed here

    options = {} if revision is None else {"revision": revision}
    try:
        return datasets.load_dataset(task.hub, task.hub_config, split=split, **options)
    except Exception as error:  # the errors of datasets, huggingface_hub and their transports have no common root
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{name_of(task, split, revision)}: cannot be loaded ({reason}); with local files set data.path=FOLDER "
            f"(it should hold {split}.parquet, .csv, .tsv or .jsonl)"
        ) from error
