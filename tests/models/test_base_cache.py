"""Prepared weights are used as they were prepared or made again, whatever became of the cache folder meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_BERT, make_tiny

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import open_base, prepare
from fibec_ray.models.base_cache import NOTE, fingerprint, kept, private
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.models.spec import Backbone
from fibec_ray.runs.simulation import simulate

quiet_libraries()

SPEC = Backbone(init="random", config={**TINY_BERT, "vocab_size": 100}, tokenizer="minilm")
WEIGHTS = "model.safetensors"


def prepared(cache: Path) -> Path:
    return prepare(SPEC, 0, 3, cache)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != NOTE}


def rewrite(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Changes a file and sets its mtime back, as a copy that keeps times does."""
    path, times = folder / name, (folder / name).stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def moved_and_linked(folder: Path) -> None:
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    (elsewhere / WEIGHTS).write_bytes(b"changed")
    folder.symlink_to(elsewhere)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a bit of the weights": lambda f: rewrite(f, WEIGHTS, lambda b: b[:-1] + bytes([b[-1] ^ 1])),
    "weights cut short": lambda f: rewrite(f, WEIGHTS, lambda b: b[:1000]),
    "no bytes of the weights": lambda f: rewrite(f, WEIGHTS, lambda b: b""),
    "no weights": lambda f: (f / WEIGHTS).unlink(),
    "another config": lambda f: rewrite(f, "config.json", lambda b: b.replace(b'"gelu"', b'"relu"')),
    "no config": lambda f: (f / "config.json").unlink(),
    "no note": lambda f: (f / NOTE).unlink(),
    "half a note": lambda f: (f / NOTE).write_text((f / NOTE).read_text()[:40]),
    "a note of nothing": lambda f: (f / NOTE).write_text("[]"),
    "a note without files": lambda f: (f / NOTE).write_text('{"head": [], "files": {}}'),
    "weights of somebody": lambda f: (f / "other.safetensors").write_bytes((f / WEIGHTS).read_bytes()),
    "an adapter beside the weights": lambda f: (f / "adapter_config.json").write_text("{}"),
    "a file in place of the folder": lambda f: (shutil.rmtree(f), f.write_text("x")),
    "a link to changed weights": lambda f: moved_and_linked(f),
    "a folder in place of the weights": lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
    "nothing in the folder": lambda f: (shutil.rmtree(f), f.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_changed_folder_is_made_again(damage: str, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    before, digest = contents(folder), fingerprint(folder)
    DAMAGE[damage](folder)
    assert prepared(tmp_path) == folder and contents(folder) == before and fingerprint(folder) == digest
    open_base(SPEC, folder)


def test_files_that_others_may_change_are_read_again_and_closed(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    for path in (folder, folder / WEIGHTS):
        path.chmod(0o777)
    (folder / ".DS_Store").touch()
    inode = (folder / WEIGHTS).stat().st_ino
    prepared(tmp_path)
    assert (folder / WEIGHTS).stat().st_ino == inode
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / WEIGHTS)] == [0o755, 0o755]


def test_files_that_were_copied_are_read_again_and_kept(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "cache")
    moved = tmp_path / "other"
    shutil.copytree(tmp_path / "cache", moved, copy_function=shutil.copy)
    inode = (moved / folder.name / WEIGHTS).stat().st_ino
    again = prepared(moved)
    assert (again / WEIGHTS).stat().st_ino == inode and fingerprint(again) == fingerprint(folder)
    note = json.loads((again / NOTE).read_text())["files"][WEIGHTS]
    assert note["ctime_ns"] == (again / WEIGHTS).stat().st_ctime_ns


def test_what_dead_processes_left_is_taken_away(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    shutil.rmtree(folder)
    left = tmp_path / f"{folder.name}.99999.part"
    left.mkdir()
    (left / WEIGHTS).write_bytes(b"half")
    assert prepared(tmp_path).is_dir() and not left.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_folder_that_could_not_be_made(error: BaseException, tmp_path: Path) -> None:
    def make(part: Path) -> list[str]:
        (part / WEIGHTS).write_bytes(b"half")
        raise error

    says = (
        "base weights cannot be written (No space left on device); free some space there, or set FIBEC_RAY_CACHE to a"
    )
    with pytest.raises(ModelError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        kept(tmp_path / "base-1", make)
    assert isinstance(error, KeyboardInterrupt) or says in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base-1.lock"]
    assert kept(tmp_path / "base-1", lambda part: []).is_dir()


# --- private


def test_the_cache_and_its_folders_are_their_user_s_alone(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    folder = prepared(cache)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cache, folder)] == [0o700, 0o700]


def test_a_cache_that_others_may_write_is_closed_to_them(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    private(cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o755


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_cache_or_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "cache")
    for path in (folder / WEIGHTS, folder):
        os.chown(path, 1234, 1234)
        with pytest.raises(ModelError, match=f"{path} belongs to another user, so its weights are not trusted; re"):
            prepared(tmp_path / "cache")
        os.chown(path, 0, 0)
    os.chown(tmp_path / "cache", 1234, 1234)
    with pytest.raises(ModelError, match="belongs to another user, who could change base weights in it; set FIBEC_RAY"):
        prepared(tmp_path / "cache")


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_path_that_is_a_file_is_one_line(below: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot hold base weights \((it is a file|Not a directory)\); set FIBEC_RAY"):
        prepared(tmp_path / "file" / below)
    monkeypatch.setenv("FIBEC_RAY_CACHE", str(tmp_path / "file" / below))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(make_tiny()))
    assert main(["run", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert "cannot hold base weights" in said.err and "Traceback" not in said.err
    assert not (tmp_path / "run").exists()


def test_a_lock_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "base-1.lock").mkdir()
    with pytest.raises(ModelError, match=r"cannot hold base weights \(.*\); set FIBEC_RAY_CACHE"):
        kept(tmp_path / "base-1", lambda part: [])


def test_a_run_on_changed_weights_has_the_bits_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBEC_RAY_CACHE", str(tmp_path / "cache"))
    experiment = check(make_tiny(rounds=1), "test")
    first = simulate(experiment, tmp_path / "one")
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    DAMAGE["a bit of the weights"](folder)
    assert simulate(experiment, tmp_path / "two").adapter_digest == first.adapter_digest
