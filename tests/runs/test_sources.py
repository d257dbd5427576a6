"""A run whose data files changed after it began goes on with its own copy, and says so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import make_tiny, named
from runs.interrupted import Plug, interrupted

from fibec_ray.checkpoints.identity import Identity, read_identity
from fibec_ray.data.stamps import changes
from fibec_ray.files.sealed import read_sealed, write_sealed
from fibec_ray.runs.resume import resume


def write(path: Path, count: int) -> None:
    path.write_text("sentence,label\n" + "".join(f"film number {i},{i % 2}\n" for i in range(count)))


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two rounds that failed in the second, and its data."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "films").mkdir()
    write(folder / "films" / "train.csv", 24)
    write(folder / "films" / "validation.csv", 8)
    settings = make_tiny(rounds=2, num_devices=2, cohort_size=2, partition={"kind": "iid"}, task=None, data=None)
    settings |= {"task": named("tasks", "sst2"), "data": {"path": str(folder / "films"), "max_length": 16}}
    interrupted(settings, folder / "run", 3)
    return folder


@pytest.fixture
def half(broken_off: Path, tmp_path: Path) -> Path:
    """The run alone; its data stay where they were."""
    return Path(shutil.copytree(broken_off / "run", tmp_path / "run"))


def notes_of(run: Path) -> list[str]:
    plug = Plug()
    assert resume(run, callback=plug) is not None
    return plug.notes


def test_a_source_that_changed_is_noted_once_and_the_run_ends(half: Path, broken_off: Path) -> None:
    films = broken_off / "films"
    kept = (films / "train.csv").read_text()
    try:
        write(films / "train.csv", 25)
        first, last = notes_of(half)
        assert first == (
            f"{films / 'train.csv'} has changed since the run began; the run goes on with its own copy of the data, "
            f"{half / 'data'}"
        )
        assert last.startswith("resuming at round 2 of 2 rounds")
    finally:
        (films / "train.csv").write_text(kept)


def test_a_source_that_was_only_touched_has_not_changed(broken_off: Path) -> None:
    sources = read_identity(broken_off / "run").prepared.sources
    films = broken_off / "films"
    assert [stamp.path for stamp in sources] == [str(films / "train.csv"), str(films / "validation.csv")]
    os.utime(films / "train.csv")
    assert changes(sources) == ""
    content = (films / "train.csv").read_text()
    (films / "train.csv").write_text(content.replace("film number 3", "film number 8"))  # as long as before
    os.rename(films / "validation.csv", films / "away.csv")
    try:
        assert changes(sources) == (
            f"{films / 'train.csv'} has changed since the run began, {films / 'validation.csv'} is no longer there"
        )
    finally:
        (films / "train.csv").write_text(content)
        os.rename(films / "away.csv", films / "validation.csv")


def test_a_run_from_before_sources_were_recorded_is_resumed(half: Path) -> None:
    path = half / "checkpoints" / "run.json"
    old = json.loads(path.read_text())
    assert old["prepared"].pop("sources")
    del old["digest"]
    identity = Identity.model_validate(old)
    write_sealed(path, identity)
    assert read_sealed(path, Identity, "the identity of a run").prepared.sources == ()
    assert notes_of(half) == ["resuming at round 2 of 2 rounds"]
