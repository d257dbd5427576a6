"""A run whose home is a URL: what is lost here or there, and what comes next."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_digits
from own_part import KIND, RULES, write_own_part

from fibec_ray.checkpoints.checkpoint import rounds_kept
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check
from fibec_ray.errors import RunDirError
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.begin import begin, workplace
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.mirror import turn
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import Finished, simulate


class Interrupt(Callback):
    """Ctrl-C after a round."""

    def __init__(self, round_: int, act: Callable[[], object] = lambda: None):
        self._round, self._act = round_, act

    def on_round_end(self, row: dict[str, Any]) -> None:
        if row["round"] == self._round:
            self._act()
            raise KeyboardInterrupt


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the URL leads; runs are worked on in tmp_path / "runs"."""
    monkeypatch.setenv("FIBEC_RAY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "bucket"


def go_on(bucket: Path, experiment: Experiment, callback: Callback, notes: list[str] | None = None) -> Finished | None:
    with workplace(f"file://{bucket}", True, ([] if notes is None else notes).append) as folder:
        return begin(experiment, folder, True, callback)


def test_what_was_never_copied_is_resumed_here(bucket: Path, tmp_path: Path) -> None:
    """The storage was out of reach when the run ended, and holds an older state."""
    experiment = check(make_digits("scaffold", rounds=4), "test")
    whole = simulate(experiment, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go_on(bucket, experiment, Interrupt(0))
    shutil.copytree(bucket, tmp_path / "older")
    with pytest.raises(KeyboardInterrupt):
        go_on(bucket, experiment, Interrupt(2))
    shutil.rmtree(bucket)
    (tmp_path / "older").rename(bucket)
    seen, notes = list[int](), list[str]()

    class Sees(Callback):
        def on_round_end(self, row: dict[str, Any]) -> None:
            seen.append(row["round"])

    run = go_on(bucket, experiment, Sees(), notes)
    assert run is not None and run.adapter_digest == whole.adapter_digest
    assert min(seen) >= 2 and notes == []
    assert log_digest(bucket) == log_digest(tmp_path / "whole")
    assert rounds_kept(bucket) == [3, 4]


def test_a_run_that_its_home_does_not_have_moves_aside(bucket: Path, tmp_path: Path) -> None:
    experiment, notes = check(make_digits(rounds=2), "test"), list[str]()
    with pytest.raises(KeyboardInterrupt):
        go_on(bucket, experiment, Interrupt(0))
    shutil.rmtree(bucket)
    assert go_on(bucket, experiment, Callback(), notes) is not None
    (aside,) = (tmp_path / "runs" / ".urls").glob("*-set-aside")
    assert len(notes) == 1 and notes[0].endswith(f"that run is now in {aside}")
    assert resume(aside) is not None


def test_a_home_keeps_a_logged_run_though_the_folder_here_is_lost(bucket: Path, tmp_path: Path) -> None:
    experiment = check(make_digits(rounds=3), "test")
    with pytest.raises(KeyboardInterrupt):
        go_on(bucket, experiment, Interrupt(0))

    def lose() -> None:
        for path in (tmp_path / "runs" / ".urls").iterdir():
            if path.is_dir():
                path.rename(tmp_path / "lost")

    with pytest.raises((KeyboardInterrupt, RunDirError)):
        go_on(bucket, experiment, Interrupt(1, lose))
    seen = list[int]()

    class Sees(Callback):
        def on_round_end(self, row: dict[str, Any]) -> None:
            seen.append(row["round"])

    assert go_on(bucket, experiment, Sees()) is not None
    assert min(seen) >= 0, "it begins again from nothing"


def test_a_part_of_the_users_own_is_at_home_too(bucket: Path, tmp_path: Path) -> None:
    """So that the run goes on from another machine, and refuses another file there."""
    _, settings = write_own_part(tmp_path / "configs")
    experiment = check(settings, "test")
    whole = simulate(experiment, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go_on(bucket, experiment, Interrupt(0))
    shutil.rmtree(tmp_path / "runs")
    assert (bucket / "parts" / "my_rules.py").read_text() == RULES
    write_own_part(tmp_path / "other", RULES.replace("min(1.0,", "min(0.9,"))
    other = settings["method"] | {"aggregator": f"{tmp_path}/other/{KIND}"}
    with pytest.raises(RunDirError, match="my_rules.py is not what this run began with; put that back"):
        go_on(bucket, check(settings | {"method": other}, "test"), Callback())
    run = go_on(bucket, experiment, Callback())
    assert run is not None and run.adapter_digest == whole.adapter_digest


def test_a_start_that_fails_leaves_nothing_at_home(bucket: Path) -> None:
    experiment = check(make_digits(rounds=1), "test")

    class Stops(Callback):
        def on_data(self, prepared: Any) -> None:
            raise MemoryError

    with pytest.raises(MemoryError):
        go_on(bucket, experiment, Stops())
    assert not [path for path in bucket.rglob("*") if path.is_file()]
    assert go_on(bucket, experiment, Callback()) is not None


def test_a_first_copy_that_stops_anywhere_can_be_gone_on_from(tmp_path: Path) -> None:
    """Files travel one by one: what has come is no run yet, or one that can be resumed."""
    _, settings = write_own_part(tmp_path / "configs")
    experiment = check(settings | {"method": settings["method"] | {"objective": "scaffold"}}, "test")
    whole = simulate(experiment, tmp_path / "whole")
    found = (path.relative_to(whole.folder).as_posix() for path in whole.folder.rglob("*") if path.is_file())
    names = sorted((name for name in found if not name.startswith(".")), key=turn)
    kept, identity = names.index("config.yaml"), names.index("checkpoints/run.json")
    assert names.index("parts/my_rules.py") < kept
    for number in {1, 5, kept - 1, kept, kept + 1, identity + 1, identity + 9, len(names) - 3, len(names) - 1}:
        copy = tmp_path / f"copy {number}"
        for name in names[:number]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(whole.folder / name, copy / name)
        run = begin(experiment, copy, True, Callback())
        assert run is not None and run.adapter_digest == whole.adapter_digest, names[number]
