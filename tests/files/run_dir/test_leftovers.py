"""What a stopped start left is begun anew; what may be the user's own is never cleared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_digits

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.files.run_dir import half_made
from fibec_ray.files.run_dir.leftovers import RUN_FILES
from fibec_ray.roundlog.schema import TABLES
from fibec_ray.runs.simulation import prepare, simulate


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and settings, as a start writes them before the run has an identity."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(check(make_digits(rounds=1), "test"), folder)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "digits.yaml"
    path.write_text(yaml.safe_dump(make_digits(rounds=1)))
    return str(path)


def write(*names: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("")

    return act


def but(*gone: str, also: tuple[str, ...] = ()) -> Callable[[Path], None]:
    """All that is prepared, but for some of it, and more."""

    def act(folder: Path) -> None:
        for name in gone:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write(*also)(folder)

    return act


STOPPED: dict[str, tuple[bool, Callable[[Path], None]]] = {
    "the lock": (False, write(".lock")),
    "the driver's name": (False, write(".lock", ".driver.json", ".driver.json.17.part")),
    "a probe": (False, write(".probe")),
    "the mark": (False, write(".lock", ".starting")),
    "the mark, half written": (False, write(".lock", "..starting.17.part")),
    "a folder for data": (False, lambda folder: (folder / "data").mkdir()),
    "a draft of the data": (False, write("data/.train.ab12_x/features.npy")),
    "the first half of the data": (True, but("config.yaml", "data/test", "data/test_rows.npy")),
    "data": (True, but("config.yaml")),
    "data and a part of the user's own": (True, but("config.yaml", also=("parts/my.py", "parts/.more.py.17.part"))),
    "data and half of the settings": (True, but("config.yaml", also=(".config.yaml.4711.part",))),
    "data and settings": (True, but()),
    "half of the identity": (True, but(also=("checkpoints/.run.json.4711.part",))),
    "anything after the mark": (True, but(also=(".starting", "summary.json", "rounds/.init.parquet.tmp"))),
    "a folder that is half cleared": (True, but("data/train/set.json", also=(".starting",))),
    "what systems leave": (False, write(".lock", ".DS_Store", ".nfs000000000012")),
}


@pytest.mark.parametrize("command", ["run", "run --resume"])
@pytest.mark.parametrize("what", STOPPED)
def test_a_start_that_was_stopped_is_begun_anew(
    what: str, command: str, prepared: Path, config: str, tmp_path: Path, capsys: Any
) -> None:
    whole, act = STOPPED[what]
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder) if whole else folder.mkdir()
    act(folder)
    assert half_made(folder)
    assert main(["resume", str(folder)]) == 2
    assert f"start it again: fibec-ray run CONFIG --out {folder}\n" in capsys.readouterr().err
    name, *options = command.split()
    assert main([name, config, "--out", str(folder), *options]) == 0
    assert not list(folder.rglob("*.part")) and not (folder / ".starting").exists()


OWN: dict[str, tuple[bool, Callable[[Path], None]]] = {
    "an experiment of that name": (False, write("config.yaml")),
    "an experiment and its data": (False, write("config.yaml", "data/train.csv")),
    "arrays in folders of those names": (False, write("data/train/x.npy", "data/test/x.npy")),
    "a draft of another program": (False, write(".download.part")),
    "Python files in a folder of that name": (False, write("parts/my.py")),
    "data and notes in a folder of that name": (True, but(also=("parts/notes.txt",))),
    "parts that are somewhere else": (True, lambda folder: _link(folder, "parts")),
    "a note beside what a start left": (True, but(also=("notes.txt",))),
    "a note within what a start left": (True, but(also=("data/notes.txt",))),
    "a note beside the mark": (True, but(also=(".starting", "notes.txt"))),
    "settings whose data are not all there": (True, but("data/test_rows.npy")),
    "data that are somewhere else": (True, lambda folder: _link(folder)),
    "a hidden file": (False, write(".hidden")),
    "a file of a name like the lock's": (False, write(".lock.txt")),
}


def _link(folder: Path, name: str = "data") -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere", target_is_directory=True)


@pytest.mark.parametrize("options", [[], ["--resume"]])
@pytest.mark.parametrize("what", OWN)
def test_files_of_the_user_s_own_are_never_cleared(
    what: str, options: list[str], prepared: Path, config: str, tmp_path: Path, capsys: Any
) -> None:
    whole, act = OWN[what]
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder) if whole else folder.mkdir()
    act(folder)
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(["run", config, "--out", str(folder), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said, said
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_run_that_has_begun_is_not_half_made(tmp_path: Path) -> None:
    folder = simulate(check(make_digits(rounds=1), "test"), tmp_path / "run").folder
    assert not half_made(folder)
    shutil.rmtree(folder / "rounds")
    assert not half_made(folder)
    (folder / "checkpoints" / "run.json").unlink()
    assert not half_made(folder)


def test_every_table_of_the_log_is_among_the_files_of_a_run() -> None:
    assert TABLES.keys() <= RUN_FILES
