"""Files that cannot be written whole: one line, and the same command again does it once there is room."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import make_digits

from fibec_ray.cli.main import main
from fibec_ray.data.arrays import load_arrays, save_array, save_arrays
from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import write_json
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.records import finished_digest


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The system refuses to write more to any file, as it does when a disk or a quota is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "digits.yaml"
    path.write_text(yaml.safe_dump(make_digits("scaffold", rounds=2, num_devices=3)))
    return str(path)


@pytest.fixture(scope="module")
def calm(config: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str | None, str]:
    folder = tmp_path_factory.mktemp("calm") / "run"
    assert main(["run", config, "--out", str(folder)]) == 0
    return finished_digest(folder), log_digest(folder)


def sizes(folder: Path) -> set[int]:
    return {path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_meets_a_limit_at_any_of_its_files_says_so_and_goes_on(
    config: str, calm: tuple[str | None, str], tmp_path: Path, capsys: Any
) -> None:
    """The limit grows each time to just below the next larger file, until the run has room for all."""
    out = ["--out", str(tmp_path / "run")]
    limit, failures = 10, list[str]()
    while True:
        with files_of_at_most(limit):
            code = main(["run", config, *out, "--resume"])
        said = capsys.readouterr().err
        if code == 0:
            break
        assert code == 2 and said.count("\n") == 1 and "File too large" in said, said
        assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.tmp"))
        failures.append(said)
        limit = int(limit * 1.6)
    assert len(failures) > 3
    assert (finished_digest(tmp_path / "run"), log_digest(tmp_path / "run")) == calm


def test_a_failed_start_leaves_room_for_the_same_command(config: str, tmp_path: Path, capsys: Any) -> None:
    out = ["--out", str(tmp_path / "run")]
    with files_of_at_most(1000):
        assert main(["run", config, *out]) == 2
    said = capsys.readouterr().err
    assert "run/data/train: cannot be written (File too large)" in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert main(["run", config, *out]) == 0


@pytest.mark.parametrize("room", [0, 100, 500])
def test_arrays_are_written_whole_or_not_at_all(room: int, tmp_path: Path) -> None:
    old, new = np.arange(5), np.arange(100)
    save_arrays(tmp_path / "set", {"x": old}, of="old")
    save_array(tmp_path / "alone.npy", old)
    with files_of_at_most(room):
        with pytest.raises(RunDirError, match="set: cannot be written .File too large."):
            save_arrays(tmp_path / "set", {"y": new[:2], "x": new}, of="new")
        with pytest.raises(RunDirError, match="other.npy: cannot be written .File too large."):
            save_array(tmp_path / "other.npy", new)
        with pytest.raises(RunDirError, match="x.json: cannot be written .File too large."):
            write_json(tmp_path / "x.json", {"x": "y" * 1000})
    arrays, about = load_arrays(tmp_path / "set")
    assert arrays["x"].tolist() == old.tolist() and about["of"] == "old"
    assert {path.name for path in tmp_path.iterdir()} <= {"set", "alone.npy", "other.npy"}


def test_arrays_are_what_numpy_writes(tmp_path: Path) -> None:
    square = np.arange(12.0).reshape(3, 4)
    for array in (square, np.asfortranarray(square), square[:, ::2], np.empty(0, np.int64), np.float32([1])):
        save_array(tmp_path / "a.npy", array)
        np.save(tmp_path / "b.npy", array)
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
