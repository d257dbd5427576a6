"""Fills in the experiment for a user's own files: `data.path=my.csv` needs no task.

What the files say becomes part of the experiment, so a run keeps it and never looks again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fibec_ray.data.own import OwnData
from fibec_ray.data.settings import DataConfig
from fibec_ray.tasks import DEFAULT, Task, kind_of_task

OWN_DATA = "own-data"
"""The packaged config that `--data` runs: everything that no data set decides."""
COLUMNS = ("text_columns", "image_column", "label_column")
"""Settings of a task that `data` may also have."""
KNOWS = ("label_names", "score_range")
"""Settings of a task that files would tell."""
NUM_DEVICES = 20
LEAST_ROWS = 10
"""training rows a device, on average, as long as the number of devices is ours to choose"""


def replace_embedded_task(raw: dict[str, Any], changed: Collection[tuple[str, ...]]) -> dict[str, Any]:
    """Drops the embedded task if an override names files and none names a task.

    So `fibec-ray run quickstart data.path=my.csv` runs the quickstart's settings on my.csv.
    changed: the keys that overrides set, such as ("data", "path").
    """
    task, data = raw.get("task"), raw.get("data")
    if not (isinstance(task, dict) and _kind(task).with_own_files and isinstance(data, dict)):
        return raw
    names_files = any(keys in (("data",), ("data", "path"), ("data", "train")) for keys in changed)
    embedded = _kind(task).embedded
    wants_embedded = ("task",) in changed or any(keys[:2] == ("data", embedded) for keys in changed)
    if not names_files or wants_embedded or not (data.get("path") or data.get("train")):
        return raw
    of_task = {keys[1] for keys in changed if keys[0] == "task"}
    kind = {} if _kind(task).with_own_files == DEFAULT else {"kind": _kind(task).with_own_files}
    return {
        **raw,
        "task": kind | {key: value for key, value in task.items() if key in of_task},
        "data": {key: value for key, value in data.items() if key != embedded},
    }


def _names_own_data(raw: dict[str, Any]) -> bool:
    """Whether the settings name files but no task, or a task whose name or classes the files must tell."""
    data, task = raw.get("data"), raw.get("task", {})
    if not isinstance(data, dict) or not (data.get("path") or data.get("train")) or not isinstance(task, dict):
        return False
    is_whole = bool(task.get("name") and any(task.get(name) for name in KNOWS))
    return _kind(task).found_in_files and not task.get("hub") and not is_whole


def _kind(task: dict[str, Any]) -> type[Task]:
    """The kind of task that settings name; the base of all kinds if it is unknown, which is reported later."""
    try:
        return kind_of_task(task)
    except ValueError:
        return Task


def with_own_data(raw: dict[str, Any]) -> dict[str, Any]:
    """The settings with task, name, and numbers of devices filled in. Unchanged if the settings name a task.

    Raises DataError where the files leave a question open, and ValidationError for a `data` section that is not valid.
    """
    if not _names_own_data(raw):
        return _with_defaults(raw)
    task = raw.get("task", {})
    given = {key: task[key] for key in COLUMNS if key in task} | raw["data"]
    users, names = _user_column(raw.get("partition")), task.get("label_names") or ()
    found, columns = _kind(task).examined(DataConfig.model_validate(given), users, names)
    data = {**raw["data"], "path": found.path, "train": found.train, "test": found.test}
    if "labels" in _kind(task).uses and not task.get("label_names"):
        data.setdefault("labels", "names")
    data = {key: value for key, value in data.items() if value is not None}
    return {**_sizes(raw, found), "task": {**_task_of(found), **columns, **task}, "data": data}


def _with_defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """own-data.yaml with a task that has a name: `--data sst2.csv task=sst2`."""
    task = raw.get("task")
    if not isinstance(task, dict) or raw.keys() & {"name", "num_devices", "cohort_size"}:
        return raw
    return {"name": task.get("name", OWN_DATA), "num_devices": NUM_DEVICES, "cohort_size": 5, **raw}


def _task_of(found: OwnData) -> dict[str, Any]:
    return {
        "name": found.title,
        **found.settings,
        "eval_split": None,
    }


def _sizes(raw: dict[str, Any], found: OwnData) -> dict[str, Any]:
    """Name, num_devices and cohort_size, if they are not set: a device for each user, or 20, less for few rows."""
    least = min(2, max(1, found.num_train // 2))
    chosen = found.num_users or max(least, min(NUM_DEVICES, found.num_train // LEAST_ROWS))
    devices = raw.get("num_devices", chosen)
    cohort = min(devices, max(5, min(devices // 10, 20))) if isinstance(devices, int) else 1
    return {"name": found.title, "num_devices": chosen, "cohort_size": cohort, **raw}


def _user_column(partition: Any) -> str | None:
    column = partition.get("column") if isinstance(partition, dict) else getattr(partition, "column", None)
    return column if isinstance(column, str) and column else None
