"""The run directory is made once; its files are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import create, next_free, replace_folder, write_json, write_text, write_yaml


def test_a_new_folder_is_made_with_its_parents_and_is_empty(tmp_path: Path) -> None:
    path = create(tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b"
    assert list(path.iterdir()) == []


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert create(tmp_path) == tmp_path.resolve()


def test_the_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert create(Path("run")) == tmp_path / "run"
    assert create(Path("~/run")) == tmp_path / "home" / "run"


@pytest.mark.parametrize("name", ["config.yaml", ".hidden"])
def test_a_folder_with_anything_in_it_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunDirError, match="is not empty; choose another --out, or remove it"):
        create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "run", "Not a directory")):
        with pytest.raises(RunDirError, match=f"cannot be written .{reason}.; choose another --out"):
            create(path)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to: /proc")
def test_a_folder_that_nobody_can_write_to_is_refused() -> None:
    with pytest.raises(RunDirError, match="cannot be written"):
        create(Path("/proc/run"))


def test_a_name_too_long_for_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="File name too long"):
        create(tmp_path / ("x" * 300))


def test_runs_of_one_name_are_numbered(tmp_path: Path) -> None:
    assert next_free(tmp_path, "x") == tmp_path / "x"
    (tmp_path / "x").mkdir()
    assert next_free(tmp_path, "x") == tmp_path / "x-2"
    (tmp_path / "x-2").write_text("")
    (tmp_path / "x-4").mkdir()
    assert next_free(tmp_path, "x") == tmp_path / "x-3"


def test_files_hold_what_was_given_and_replace_older_ones(tmp_path: Path) -> None:
    for value in ({"b": 1, "a": "ü"}, {"b": [1.5, None]}):
        write_json(tmp_path / "x.json", value)
        write_yaml(tmp_path / "x.yaml", value)
        assert json.loads((tmp_path / "x.json").read_text()) == value
        assert yaml.safe_load((tmp_path / "x.yaml").read_text(encoding="utf-8")) == value
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.yaml"]


def test_keys_keep_their_order(tmp_path: Path) -> None:
    write_yaml(tmp_path / "x.yaml", {"b": 1, "a": 2})
    assert (tmp_path / "x.yaml").read_text() == "b: 1\na: 2\n"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")
    (tmp_path / "folder" / "y").mkdir(parents=True)
    with pytest.raises(RunDirError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "new")
    with pytest.raises(RunDirError, match="cannot be written .Not a directory."):
        write_text(tmp_path / "x" / "below", "new")
    with pytest.raises(RunDirError, match="cannot be written .No such file or directory."):
        write_text(tmp_path / "none" / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "x"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to: /proc")
def test_a_write_to_a_folder_that_nobody_can_write_to() -> None:
    with pytest.raises(RunDirError, match="cannot be written"):
        write_text(Path("/proc/x"), "new")


def test_a_finished_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for round_ in range(2):
        draft = tmp_path / "draft"
        draft.mkdir()
        (draft / f"file-{round_}").touch()
        replace_folder(draft, tmp_path / "target")
        assert [path.name for path in (tmp_path / "target").iterdir()] == [f"file-{round_}"]
        assert not draft.exists()
