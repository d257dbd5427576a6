"""Paths that cannot be used, and files that are none of ours: one line for the first, and no notice of the second."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_digits
from runs.interrupted import interrupted

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.errors import RunDirError
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.records import finished_digest
from fibec_ray.runs.simulation import simulate

COMMANDS: dict[str, Sequence[str]] = {
    "run": ("run", "CONFIG", "--out", "PATH"),
    "run --resume": ("run", "CONFIG", "--resume", "--out", "PATH"),
    "resume": ("resume", "PATH"),
    "verify": ("verify", "PATH"),
    "replay": ("replay", "PATH", "--round", "0", "--device", "0"),
    "report": ("report", "PATH"),
    "runs": ("runs", "PATH"),
    "watch": ("watch", "PATH"),
    "compare": ("compare", "PATH"),
    "export": ("export", "PATH", "--to", "tensorboard"),
    "sweep": ("sweep", "CONFIG", "method=fedavg,fedprox", "--out", "PATH"),
    "sweep-table": ("sweep-table", "PATH"),
}
PATHS = {
    "a name of 256 characters": "x" * 256,
    "a path of many": "x/" * 2500,
    "bytes that are no text": os.fsdecode(b"a\xff"),
    "a NUL": "a\0b",
    "nobody's home": "~nobody-of-this-name/run",
    "a circle of links": "circle",
    "below a circle of links": "circle/run",
    "a file": "file",
    "below a file": "file/run",
    "a device": "/dev/null",
    "below a folder of the system": "/proc/none/run",
}


@pytest.mark.parametrize("what", PATHS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_cannot_be_used_is_one_line(
    command: str, what: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("circle").symlink_to("circle")
    Path("file").write_text("mine")
    Path("digits.yaml").write_text(yaml.safe_dump(make_digits(rounds=1)))
    words = {"CONFIG": "digits.yaml", "PATH": PATHS[what]}
    assert main([words.get(word, word) for word in COMMANDS[command]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fibec-ray: ") and err.count("\n") == 1, err
    assert sorted(os.listdir()) == ["circle", "digits.yaml", "file"]


@pytest.mark.parametrize("name", ["two\nlines", "[bold]", "späte Läufe", "dangling", "-x", "key=value"])
def test_an_unusual_path_will_do(name: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dangling").symlink_to("none/yet")
    Path("digits.yaml").write_text(yaml.safe_dump(make_digits(rounds=1)))
    assert main(["run", "digits.yaml", f"--out={name}"]) == 0
    assert main(["resume", f"./{name}"]) == 0
    assert main(["runs", f"./{name}"]) == 0
    assert main(["watch", f"./{name}"]) == 0


# --- files that are none of ours

KEEP_ALL = {"keep": "all"}


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = make_digits("scaffold", rounds=4, num_devices=3, checkpoint=KEEP_ALL)
    return interrupted(settings, tmp_path_factory.mktemp("half") / "run", 2 * 3 + 1)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | None, str]:
    settings = make_digits("scaffold", rounds=4, num_devices=3, checkpoint=KEEP_ALL)
    folder = simulate(check(settings, "test"), tmp_path_factory.mktemp("calm") / "run").folder
    return finished_digest(folder), log_digest(folder)


STRAYS = {
    "copies": lambda path: f"{path.stem} (copy){path.suffix}",
    "backups": lambda path: f"{path.name}~",
    "of systems": lambda path: f"._{path.name}",
    "with letters": lambda path: f"part-abc-{path.name}",
    "with other digits": lambda path: f"０{path.stem}{path.suffix}",
}


@pytest.mark.parametrize("kind", STRAYS)
def test_files_and_folders_that_are_none_of_ours_change_nothing_and_stay(
    kind: str, half: Path, calm: tuple[str | None, str], tmp_path: Path, capsys: Any
) -> None:
    """One beside each file and folder of a run, with its content."""
    folder = Path(shutil.copytree(half, tmp_path / "run"))
    strays = []
    for path in sorted(folder.rglob("*"), reverse=True):  # from the inside out
        if not path.name.startswith("."):
            strays.append(path.with_name(STRAYS[kind](path)))
            shutil.copytree(path, strays[-1]) if path.is_dir() else shutil.copy(path, strays[-1])
            if path.is_relative_to(folder / "data") and kind != "of systems":  # all of it is the run's
                path = strays.pop()
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    name = str(folder)
    for command in ("verify", "resume", "verify", "report", "runs", "watch"):
        assert main([command, name]) == 0, command
    assert main(["compare", name]) == 0
    assert capsys.readouterr().err == ""
    assert (finished_digest(folder), log_digest(folder)) == calm
    assert all(stray.exists() for stray in strays)


def test_a_stray_file_among_the_data_is_refused(half: Path, tmp_path: Path, capsys: Any) -> None:
    """A device that nothing reads from; without it the run goes on."""
    folder = Path(shutil.copytree(half, tmp_path / "run"))
    stray = folder / "data" / "train" / "labels (copy).npy"
    stray.write_text("")
    assert main(["resume", str(folder)]) == 2
    assert "is not the data set that the run began with" in capsys.readouterr().err
    stray.unlink()
    assert main(["resume", str(folder)]) == 0


def test_a_folder_of_the_log_that_cannot_be_read_is_one_line(half: Path, tmp_path: Path, capsys: Any) -> None:
    folder = Path(shutil.copytree(half, tmp_path / "run"))
    shutil.rmtree(folder / "rounds")
    (folder / "rounds").symlink_to("rounds")
    for command in ("resume", "verify", "report", "export --to tensorboard"):
        name, *options = command.split()
        with_what = [name, str(folder), *options]
        assert main(with_what) == 2, command
        assert capsys.readouterr().err.count("\n") == 1


def test_a_path_of_python_s_own_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="is not a usable path"):
        simulate(check(make_digits(rounds=1), "test"), tmp_path / "a\0b")
