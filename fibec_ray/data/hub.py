"""One split from the Hugging Face hub, through `datasets`. Used by `source.py` where no local path is set."""

from __future__ import annotations

from typing import Any

from fibec_ray.data.readers import Choice, require_columns
from fibec_ray.data.tasks import Task
from fibec_ray.errors import DataError


def load_split(task: Task, split: str) -> tuple[Any, list[str] | None]:
    """The task's text and label columns as a pyarrow.Table, and the class names where the hub has a ClassLabel."""
    columns = (*task.text_columns, task.label_column)
    loaded = _load(task, split)
    require_columns(name_of(task, split), columns, list(loaded.column_names))
    names = getattr(loaded.features[task.label_column], "names", None)
    return loaded.select_columns(list(columns)).with_format("arrow")[:], names


def load_columns(task: Task, split: str, choose: Choice) -> Any:
    """The chosen columns as a pyarrow.Table."""
    loaded = _load(task, split)
    return loaded.select_columns(list(choose(list(loaded.column_names)))).with_format("arrow")[:]


def name_of(task: Task, split: str) -> str:
    return f"hub {task.hub}, split '{split}'"


def _load(task: Task, split: str) -> Any:
    """Code of a data set's author is never run (`trust_remote_code` stays off)."""
    import datasets  # half a second; only needed here

    try:
        return datasets.load_dataset(task.hub, task.hub_config, split=split)
    except Exception as error:  # the errors of datasets, huggingface_hub and their transports have no common root
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{name_of(task, split)}: cannot be loaded ({reason}); with local files set data.path=FOLDER "
            f"(it should hold {split}.parquet, .csv, .tsv or .jsonl)"
        ) from error
