"""Loads one split from the Hugging Face hub, through `datasets`."""

from __future__ import annotations

import json
from typing import Any

from fibec_ray.data.columns import Choice, chosen
from fibec_ray.data.described import OnHub
from fibec_ray.errors import DataError


def load_columns(task: OnHub, split: str, revision: str | None, choose: Choice) -> Any:
    """The chosen columns as a pyarrow.Table, with the hub's features in its metadata as `datasets` writes them."""
    loaded = _load(task, split, revision)
    columns = chosen(choose, list(loaded.column_names), name_of(task, split, revision))
    table = loaded.select_columns(list(columns)).with_format("arrow")[:]
    features = {"info": {"features": loaded.features.to_dict()}}
    return table.replace_schema_metadata({"huggingface": json.dumps(features)})


def name_of(task: OnHub, split: str, revision: str | None) -> str:
    """Data set, revision and split, for messages."""
    return f"hub {task.hub}{f' at {revision}' if revision else ''}, split '{split}'"


def _load(task: OnHub, split: str, revision: str | None) -> Any:
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
