"""One driver at a time writes to a run directory; a failed start leaves nothing, a run that has begun loses nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_digits
from runs.interrupted import result

from fibec_ray.cli.main import main
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check
from fibec_ray.errors import FibecError, RunDirError
from fibec_ray.files.run_dir import claimed, locked, taken
from fibec_ray.runs.begin import begin
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import simulate


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return check(make_digits("scaffold", rounds=2, num_devices=3), "test")


@pytest.fixture(scope="module")
def calm(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, int]:
    folder = tmp_path_factory.mktemp("calm") / "run"
    return result(simulate(experiment, folder), folder)


class At(Callback):
    """Does something once, at a moment of a run: `prepared`, or after the row of a round."""

    def __init__(self, moment: str | int, act: Callable[[], object]):
        self._moment, self._act = moment, act

    def on_data(self, prepared: Any) -> None:
        if self._moment == "prepared":
            self._act()

    def on_round_end(self, row: Any) -> None:
        if self._moment == row["round"]:
            self._act()


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- several drivers


@pytest.mark.parametrize("moment", ["prepared", -1, 0, 1])
@pytest.mark.parametrize("how", ["run", "run --resume", "resume"])
def test_who_comes_second_touches_nothing_and_the_first_one_ends_well(
    how: str, moment: str | int, experiment: Experiment, calm: tuple[str, str, int], tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def second() -> None:
        still = moment == "prepared"  # later on, checkpoints are written and removed beside training
        before = contents(folder) if still else {}
        with pytest.raises(RunDirError, match="is not empty|a driver is at work here"):
            resume(folder) if how == "resume" else begin(experiment, folder, how == "run --resume", Callback())
        assert not still or contents(folder) == before

    assert result(simulate(experiment, folder, At(moment, second)), folder) == calm


def test_a_second_claim_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with claimed(tmp_path / "run") as claim:
        before = contents(claim.folder)
        with pytest.raises(RunDirError, match=rf"a driver is at work here \(pid {os.getpid()} on "):
            claimed(tmp_path / "run").__enter__()
        with pytest.raises(RunDirError, match="a driver is at work here"):
            locked(tmp_path / "run").__enter__()
        assert contents(claim.folder) == before
        claim.begin()
    assert (tmp_path / "run").is_dir()


def test_a_folder_that_is_undone_while_others_wait_for_it_serves_one_of_them(tmp_path: Path) -> None:
    """Threads that claim and fail again and again: two never have it at once, and all errors are ours.

    An empty folder may stay: the start that made it could not remove it while another one was in it.
    """
    inside, most, errors = [0], [0], list[BaseException]()
    one = tmp_path / "runs" / "one"

    def compete() -> None:
        for _ in range(20):
            try:
                with claimed(one):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1
                    raise MemoryError
            except (MemoryError, RunDirError):
                pass
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and most[0] == 1 and (not one.exists() or names(one) == set())
    with claimed(one) as claim:
        claim.begin()


def test_runs_of_one_name_that_start_together_have_folders_of_their_own(tmp_path: Path) -> None:
    found, together = list[Path](), threading.Barrier(8)

    def take() -> None:
        together.wait()
        with taken(tmp_path / "runs", "x") as path:
            found.append(path)
            (path / "file").touch()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name for path in found} == {"x", *(f"x-{number}" for number in range(2, 9))}


def test_a_name_is_given_back_if_its_run_never_began(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), taken(tmp_path / "runs", "x"):
        raise ZeroDivisionError
    assert names(tmp_path) == set()


def test_a_name_too_long_for_a_folder_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunDirError, match="cannot be made .File name too long."):
        taken(Path("runs"), "ä" * 200).__enter__()
    with taken(Path("runs"), "ä" * 100) as path:
        assert path.is_dir()


# --- a start that fails


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(1), MemoryError(), ConnectionError("x"), OSError(5, "x"), FibecError("x")]
)
def test_whatever_a_start_fails_with_it_leaves_what_was_there(
    error: BaseException, there: bool, experiment: Experiment, calm: tuple[str, str, int], tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "run"
    if there:
        folder.mkdir(parents=True)
    with pytest.raises((type(error), RunDirError)):
        simulate(experiment, folder, At("prepared", raising(error)))
    assert list(tmp_path.rglob("*")) == ([folder.parent, folder] if there else [])
    assert result(simulate(experiment, folder), folder) == calm


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seen", [".starting", "data", "config.yaml"])
def test_a_signal_while_data_are_prepared_leaves_nothing(
    seen: str, number: int, experiment: Experiment, tmp_path: Path, capsys: Any
) -> None:
    config, folder = tmp_path / "x.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(make_digits("scaffold", rounds=300, num_devices=3)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not (folder / seen).exists() and time.monotonic() < deadline:
            time.sleep(0.0005)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    try:
        thread.start()
        assert main(["run", str(config), "--out", str(folder)]) == 128 + number
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert said.startswith("fibec-ray: interrupted") and said.count("\n") == 1
    assert not folder.exists() or (folder / "rounds" / "init.parquet").exists()


def test_files_that_come_while_a_start_fails_stay(experiment: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def act() -> None:
        (folder / "notes.txt").write_text("mine")
        raise MemoryError

    with pytest.raises(MemoryError):
        simulate(experiment, folder, At("prepared", act))
    assert names(folder) == {"notes.txt"}


# --- a run that has begun


@pytest.mark.parametrize("error", [RunDirError("x"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("moment", [-1, 0])
def test_nothing_goes_once_a_round_is_logged_even_if_the_log_is_out_of_sight(
    moment: int, error: BaseException, experiment: Experiment, calm: tuple[str, str, int], tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def act() -> None:
        (folder / "rounds").rename(tmp_path / "away")
        raise error

    with pytest.raises(type(error)):
        simulate(experiment, folder, At(moment, act))
    for resumes in (False, True):  # neither a new start nor one with --resume takes it for a start that was stopped
        with pytest.raises(RunDirError):
            begin(experiment, folder, False, Callback())
        if resumes:
            (tmp_path / "away").rename(folder / "rounds")
    assert {"data", "config.yaml", "checkpoints", "rounds", "devices", "summary.json"} <= names(folder)
    assert result(resume(folder), folder) == calm


def test_a_new_run_names_what_to_do_about_the_run_that_is_there(
    experiment: Experiment, calm: tuple[str, str, int], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(MemoryError):
        simulate(experiment, folder, At(0, raising(MemoryError())))
    with pytest.raises(RunDirError, match=f"choose another --out, or continue .*: fibec-ray resume {folder}$"):
        simulate(experiment, folder)
    assert main(["resume", str(folder)]) == 0


def test_the_mark_of_a_start_is_gone_when_rounds_are_logged(experiment: Experiment, tmp_path: Path) -> None:
    seen: list[bool] = []
    folder = tmp_path / "run"

    class Looks(Callback):
        def on_data(self, prepared: Any) -> None:
            seen.append((folder / ".starting").exists())

        def on_round_end(self, row: Any) -> None:
            seen.append((folder / ".starting").exists())

    simulate(experiment, folder, Looks())
    assert seen == [True, False, False, False]
