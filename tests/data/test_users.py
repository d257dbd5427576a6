"""The column of users is read in one way, whatever the task and the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from fibec_ray.data.examples import Rows
from fibec_ray.data.settings import DataConfig
from fibec_ray.errors import DataError
from fibec_ray.tasks import Task, load, parse_task

CLASSES = parse_task({"name": "films", "label_names": ["bad", "good"], "eval_split": None, "hub": "a/films"})
TOLD = parse_task({"name": "told", "kind": "instructions", "eval_split": None, "hub": "a/told"})
WRITERS: list[Any] = ["ann", "bob", " ann", "bob", "cy", "ann"] * 2
ROWS: dict[str, list[Any]] = {
    "sentence": [f"film {i}" for i in range(12)],
    "label": [0, 1] * 6,
    "writer": WRITERS,
}
ANSWERS: dict[str, list[Any]] = {
    "instruction": [f"do {i}" for i in range(12)],
    "response": ["done"] * 12,
    "writer": WRITERS,
}
both_tasks = pytest.mark.parametrize(
    ("task", "columns"), [(CLASSES, ROWS), (TOLD, ANSWERS)], ids=["classes", "instructions"]
)


def rows(
    task: Task, columns: dict[str, Any], user_column: str, where: Path | None, **options: Any
) -> tuple[Rows, Rows]:
    """where: the folder to write a file to; None: the rows come from the hub."""
    config = DataConfig(**options)
    if where is not None:
        datasets.Dataset.from_dict(columns).to_parquet(where / "rows.parquet")
        config = DataConfig(path=str(where / "rows.parquet"), **options)
    return load(task, config, 0, user_column)


@pytest.fixture(params=["files", "hub"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    on_hub = {"a/films": ROWS, "a/told": ANSWERS}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *_, **__: datasets.Dataset.from_dict(on_hub[name]))
    return tmp_path if request.param == "files" else None


@both_tasks
def test_users_come_with_the_rows(task: Task, columns: dict[str, Any], where: Path | None) -> None:
    train, test = rows(task, columns, "writer", where)
    assert sorted([*(train.users or ()), *(test.users or ())]) == sorted(user.strip() for user in WRITERS)
    assert set(train.users or ()) == {"ann", "bob", "cy"}  # every user keeps training rows
    for text, user in zip(train.texts() or (), train.users or (), strict=True):
        assert user == WRITERS[int(text.split()[1])].strip()


@both_tasks
def test_a_missing_column_names_the_setting(task: Task, columns: dict[str, Any], where: Path | None) -> None:
    with pytest.raises(DataError, match="no column 'riter'; .* did you mean 'writer'.* set partition.column"):
        rows(task, columns, "riter", where)


def test_only_rows_that_are_used_need_a_user(tmp_path: Path) -> None:
    """The message counts rows as the file does."""
    columns = {**ROWS, "sentence": [None, *ROWS["sentence"][1:]], "writer": [None, *WRITERS[1:]]}
    train, test = rows(CLASSES, columns, "writer", tmp_path, drop_missing=True)
    assert len(train) + len(test) == 11
    columns["writer"] = [None, *WRITERS[1:7], None, *WRITERS[8:]]
    with pytest.raises(DataError, match="column 'writer': no value in row 7"):
        rows(CLASSES, columns, "writer", tmp_path, drop_missing=True)
