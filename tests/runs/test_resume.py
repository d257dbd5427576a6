"""A resumed run equals an uninterrupted one, or one line says why it cannot be resumed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from runs.interrupted import Plug, interrupted, result

from fibec_ray.analysis.tables import RunTables
from fibec_ray.checkpoints import checkpoint
from fibec_ray.checkpoints.identity import read_identity
from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError, RunDirError
from fibec_ray.files.run_dir import locked
from fibec_ray.models.base_cache import head_of, seal
from fibec_ray.roundlog.reader import read_devices, read_rounds
from fibec_ray.runs.records import read_record
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import simulate
from fibec_ray.runs.verify import verify

ROUNDS, COHORT = 5, 3
IN_ROUND_3 = 3 * COHORT + 2
"""device-rounds after which round 3 is half done"""


@pytest.fixture(scope="module")
def settings(tiny_settings: Any) -> dict[str, Any]:
    made: dict[str, Any] = tiny_settings("fibecfed", rounds=ROUNDS, cohort_size=COHORT)
    return made


@pytest.fixture(scope="module")
def calm(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, int]:
    folder = tmp_path_factory.mktemp("calm") / "run"
    return result(simulate(check(settings, "test"), folder), folder)


@pytest.fixture(scope="module")
def broken_off(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interrupted(settings, tmp_path_factory.mktemp("broken") / "run", IN_ROUND_3)


@pytest.fixture
def half(broken_off: Path, tmp_path: Path) -> Path:
    """A run that failed in round 3: checkpoints before rounds 2 and 3, and what two devices did in round 3."""
    return Path(shutil.copytree(broken_off, tmp_path / "run"))


def status(folder: Path) -> str:
    found: str = json.loads((folder / "summary.json").read_text())["status"]
    return found


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_failed_run_has_its_last_checkpoints_and_a_log_to_its_last_round(half: Path) -> None:
    assert status(half) == "failed"
    assert checkpoint.rounds_kept(half) == [2, 3]
    assert read_rounds(half).column("round").to_pylist() == [-1, 0, 1, 2]


def test_it_goes_on_as_if_nothing_had_happened(half: Path, calm: tuple[str, str, int]) -> None:
    wall = read_rounds(half).column("wall_time_s").to_pylist()
    run_ids = {pq.read_schema(half / "rounds" / "init.parquet").metadata[b"run_id"]}
    plug = Plug()
    assert result(resume(half, (), plug), half) == calm
    assert plug.notes == ["resuming at round 4 of 5 rounds"]
    assert status(half) == "finished"
    walls = read_rounds(half).column("wall_time_s").to_pylist()
    assert walls[:4] == wall and walls == sorted(walls)
    assert {pq.read_schema(part).metadata[b"run_id"] for part in (half / "rounds").iterdir()} == run_ids
    assert not list(half.rglob("*.part"))


def test_a_run_that_goes_on_on_another_device_type_says_so(half: Path) -> None:
    """A machine without a GPU takes up what one with a GPU began."""
    summary = json.loads((half / "summary.json").read_text())
    assert summary["device"] == "cpu"
    (half / "summary.json").write_text(json.dumps({**summary, "device": "cuda"}))
    plug = Plug()
    resume(half, (), plug)
    assert "this run computed on cuda before and computes on cpu now: results differ by rounding" in plug.notes[1]
    assert json.loads((half / "summary.json").read_text())["device"] == "cpu"


def test_a_failed_run_of_many_short_rounds_has_a_log_to_its_last_round(tiny_settings: Any, tmp_path: Path) -> None:
    """A part of such a log has the rounds of a whole cohort, here three; a checkpoint and a failure end it earlier."""
    settings = tiny_settings("fedavg", schedule="async", rounds=12, cohort_size=3, checkpoint={"every": 5})
    calm = tmp_path / "calm"
    expected = result(simulate(check(settings, "test"), calm), calm)
    names = [f"part-{round_:06d}.parquet" for round_ in (2, 4, 7, 9, 11)]
    assert sorted(path.name for path in (calm / "layers").iterdir()) == ["init.parquet", *names]

    half = interrupted(settings, tmp_path / "half", 9)
    logged = read_rounds(half).column("round").to_pylist()
    assert logged == list(range(-1, len(logged) - 1)) and (len(logged) - 1) % 3
    assert read_devices(half).column("round").to_pylist() == logged[1:]
    assert RunTables.read(half).column("round") == logged  # it does not look damaged
    assert result(resume(half), half) == expected
    assert not verify(half).differences and not verify(calm).differences


def test_it_can_fail_again_and_again(settings: dict[str, Any], tmp_path: Path, calm: tuple[str, str, int]) -> None:
    """After 1, 5, 2, 4 and 3 device-rounds; what a driver did in a round that it did not end is done again."""
    folder = interrupted(settings, tmp_path / "run", 1)
    for after in (5, 2, 4, 3):
        with pytest.raises(ConnectionError):
            resume(folder, (), Plug(after))
    assert result(resume(folder), folder) == calm


@pytest.mark.parametrize(("kept", "first"), [({"every": 3, "keep": 1}, 3), ({"every": 10}, 0), ({"keep": "all"}, 4)])
def test_rare_checkpoints_cost_rounds_and_nothing_else(
    kept: dict[str, Any], first: int, settings: dict[str, Any], tmp_path: Path, calm: tuple[str, str, int]
) -> None:
    """Devices that took part several times since the checkpoint start again from the state that they had then."""
    folder = interrupted({**settings, "checkpoint": kept}, tmp_path / "run", 4 * COHORT + 1)
    plug = Plug()
    assert result(resume(folder, (), plug), folder) == calm
    assert plug.notes == [f"resuming at round {first + 1} of 5 rounds"]


def test_without_a_checkpoint_it_starts_from_the_setup(half: Path, calm: tuple[str, str, int]) -> None:
    shutil.rmtree(half / "checkpoints" / "rounds")
    plug = Plug()
    assert result(resume(half, (), plug), half) == calm
    assert plug.notes[-1] == "resuming at the initialisation phase of 5 rounds"


def test_a_run_that_died_before_it_saved_its_adapter(half: Path, calm: tuple[str, str, int]) -> None:
    resume(half)
    shutil.rmtree(half / "adapter")
    (half / "summary.json").write_text('{"status": "running"}')
    assert result(resume(half), half) == calm
    assert (half / "adapter" / "adapter_model.safetensors").exists()


def test_lanes_that_were_found_at_the_start_stay(tiny_settings: Any, tmp_path: Path) -> None:
    """A trial that takes times finds them for a base in bfloat16: another trial might find others, and other bits."""
    fleet = {"kind": "local", "lanes": "auto"}
    settings = tiny_settings("fedavg", rounds=3, fleet=fleet, backbone={"dtype": "bfloat16"})
    folder = interrupted(settings, tmp_path / "run", COHORT + 1)
    lanes = checkpoint.load(folder, 1).manifest.lanes
    resume(folder)
    assert json.loads((folder / "summary.json").read_text())["lanes"] == lanes
    assert checkpoint.load(folder, 3).manifest.lanes == lanes
    assert verify(folder, 99, from_start=True).differences == []


@pytest.mark.parametrize(("placement", "says"), [("per_device", "lanes 2 needs actors that host"), ("auto", "")])
def test_a_fleet_that_cannot_have_the_run_s_lanes_is_refused(placement: str, says: str, half: Path) -> None:
    record = read_record(half, [f"fleet={{kind: ray, placement: {placement}}}"])
    if not says:
        assert record.computing(2).experiment.fleet.known_lanes == 2
        return
    with pytest.raises(ConfigError, match=says):
        record.computing(2)


# --- damage

DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit of the server's state": lambda run: flip_a_bit(run / "checkpoints/rounds/000003/server.safetensors"),
    "a bit of the manifest": lambda run: flip_a_bit(run / "checkpoints/rounds/000003/manifest.json"),
    "states of round 2 are gone": lambda run: remove(run.glob("checkpoints/devices/*/2.safetensors")),
    "a part of round 2 cut short": lambda run: os.truncate(run / "devices/part-000002.parquet", 300),
    "a byte less of a state of round 2": lambda run: shorten(newest_states(run)[0]),
    "two devices' states of round 2 swapped": lambda run: swap(*newest_states(run)[:2]),
    "a state of round 2 replaced by an older one": lambda run: newest_states(run)[0].write_bytes(
        next(path for path in newest_states(run)[0].parent.glob("*.safetensors") if path.stem != "2").read_bytes()
    ),
    "a bit of the log of round 2": lambda run: flip_a_bit_inside(run / "evaluations/part-000002.parquet"),
    "a part of the log replaced by an older one": lambda run: shutil.copyfile(
        run / "layers/part-000001.parquet", run / "layers/part-000002.parquet"
    ),
}


def newest_states(run: Path) -> list[Path]:
    """Those that only the newest checkpoint counts on."""
    return sorted(run.glob("checkpoints/devices/*/2.safetensors"))


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def flip_a_bit_inside(path: Path) -> None:
    """Where the file stays readable: in a value, not at its end."""
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_costs_a_round(what: str, half: Path, calm: tuple[str, str, int]) -> None:
    DAMAGE[what](half)
    plug = Plug()
    assert result(resume(half, (), plug), half) == calm
    assert plug.notes[0].startswith(f"the checkpoint before round 4 cannot be used: {half}")
    assert plug.notes[1] == "resuming at round 3 of 5 rounds"


def test_a_state_of_another_seed_is_not_used(
    half: Path, settings: dict[str, Any], tmp_path: Path, calm: tuple[str, str, int]
) -> None:
    other = interrupted({**settings, "seed": 4}, tmp_path / "other", IN_ROUND_3)
    ours, theirs = newest_states(half)[0], next(other.glob("checkpoints/devices/*/2.safetensors"))
    shutil.copyfile(theirs, ours)
    plug = Plug()
    assert result(resume(half, (), plug), half) == calm
    assert "is another state than the one that the run accepted in round 3" in plug.notes[0]


def test_an_older_part_of_the_log_that_changed_is_named_and_nothing_is_touched(half: Path) -> None:
    """Both checkpoints count on it."""
    flip_a_bit_inside(half / "rounds/part-000000.parquet")
    before = contents(half)
    with pytest.raises(RunDirError, match=r"no checkpoint can be used, .*rounds/part-000000\.parquet: is damaged"):
        resume(half)
    assert contents(half) == before


def test_a_checkpoint_of_another_run_is_not_used(
    half: Path, settings: dict[str, Any], tmp_path: Path, calm: tuple[str, str, int]
) -> None:
    other = interrupted({**settings, "seed": 4}, tmp_path / "other", IN_ROUND_3)
    shutil.rmtree(half / "checkpoints/rounds/000003")
    shutil.copytree(other / "checkpoints/rounds/000003", half / "checkpoints/rounds/000003")
    plug = Plug()
    assert result(resume(half, (), plug), half) == calm
    assert "belongs to another run" in plug.notes[0]


def test_if_no_checkpoint_is_whole_the_run_stays_as_it_is(half: Path) -> None:
    for path in half.glob("checkpoints/rounds/*/manifest.json"):
        path.write_text("{}")
    before = contents(half)
    with pytest.raises(RunDirError, match="no checkpoint can be used, the oldest because .*000002.*start a new run"):
        resume(half)
    assert contents(half) == before


def test_a_damaged_state_of_a_device_is_an_error_and_not_another_result(half: Path) -> None:
    for path in half.glob("checkpoints/devices/*/*.safetensors"):
        flip_a_bit(path)
    with pytest.raises(RunDirError, match="the device's state is damaged"):
        resume(half)


def test_without_any_checkpoint_the_run_begins_again_and_its_log_is_kept(
    half: Path, calm: tuple[str, str, int], tmp_path: Path
) -> None:
    """The checkpoints may be out of sight for a moment only: with them the old run goes on from where it was."""
    (half / "checkpoints" / "rounds").rename(tmp_path / "away")
    plug = Plug()
    assert result(resume(half, (), plug), half) == calm
    aside = half / "set-aside"
    assert plug.notes[0].endswith(f"the log up to round 3 is kept in {aside}")
    assert read_rounds(aside).column("round").to_pylist() == [-1, 0, 1, 2]
    for name in ("config.yaml", "data", "checkpoints/run.json"):
        (aside / name).symlink_to(half / name)
    (tmp_path / "away").rename(aside / "checkpoints" / "rounds")
    assert result(resume(aside), aside) == calm


# --- what is refused


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """But for the lock."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of an error that the user can fix."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1, err
    return err


def test_a_finished_run_says_so_and_nothing_changes(half: Path, capsys: Any) -> None:
    run = resume(half)
    assert run is not None
    before = contents(half)
    assert resume(half) is None
    assert main(["resume", str(half)]) == 0
    assert capsys.readouterr().out == f"{half}: this run is finished (adapter {run.adapter_digest}); nothing to do\n"
    assert contents(half) == before


@pytest.mark.parametrize("command", [["resume"], ["verify"], ["replay", "--round", "0", "--device", "0"]])
def test_what_is_no_run_directory(command: list[str], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    name, *options = command
    for folder in ("none", "file", "file/below"):
        assert "no such run directory" in said(capsys, name, str(tmp_path / folder), *options)
    assert "is not a run directory (it has no config.yaml)" in said(capsys, name, str(tmp_path / "empty"), *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_a_changed_setting_is_named(half: Path, capsys: Any) -> None:
    before = contents(half)
    message = said(capsys, "resume", str(half), "local.learning_rate=0.5")
    assert "local.learning_rate is 0.01 there, 0.5 here" in message and "config.yaml" in message
    config = yaml.safe_load((half / "config.yaml").read_text())
    (half / "config.yaml").write_text(yaml.safe_dump(config | {"rounds": 9}))
    assert "rounds is 5 there, 9 here" in said(capsys, "resume", str(half))
    (half / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert contents(half).keys() == before.keys()


def test_a_setting_that_no_result_depends_on_may_change(half: Path, calm: tuple[str, str, int]) -> None:
    changes = ["checkpoint.keep=1", "fleet.on_bad_update=error"]
    assert result(resume(half, changes), half) == calm
    assert checkpoint.rounds_kept(half) == [ROUNDS]


def test_a_misspelt_setting_is_refused(half: Path, capsys: Any) -> None:
    assert "checkpoint.kep: no such key; did you mean 'keep'?" in said(capsys, "resume", str(half), "checkpoint.kep=1")


def test_changed_data_are_refused(half: Path, capsys: Any) -> None:
    flip_a_bit(half / "data" / "train" / "labels.npy")
    assert "data: is not the data set that the run began with" in said(capsys, "resume", str(half))


def test_other_base_weights_are_refused(half: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose backbone is of another revision, or whose torch draws other random weights."""
    there = Path(os.environ["FIBEC_RAY_CACHE"])
    monkeypatch.setenv("FIBEC_RAY_CACHE", str(half.parent / "cache"))
    for folder in there.glob("base-*"):
        if folder.is_dir():
            other = Path(shutil.copytree(folder, half.parent / "cache" / folder.name))
            for path in other.glob("*.safetensors"):
                flip_a_bit(path)
            seal(other, head_of(other))
    before = read_rounds(half).to_pylist()
    with pytest.raises(RunDirError, match="the base weights are not those that the run began with"):
        resume(half)
    assert read_rounds(half).to_pylist() == before and status(half) == "failed"
    device = next(row["device"] for row in read_devices(half).to_pylist() if row["round"] == 2)
    says = said(capsys, "replay", str(half), "--round", "3", "--device", str(device))
    assert "the base weights are not those that the run began with" in says


def test_base_weights_that_changed_in_the_cache_are_made_again(
    half: Path, calm: tuple[str, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, cache = Path(os.environ["FIBEC_RAY_CACHE"]), half.parent / "cache"
    monkeypatch.setenv("FIBEC_RAY_CACHE", str(cache))
    for folder in there.glob("base-*"):
        if folder.is_dir():
            flip_a_bit(Path(shutil.copytree(folder, cache / folder.name)) / "model.safetensors")
    assert result(resume(half), half) == calm


def test_a_run_without_its_identity_is_refused(half: Path, capsys: Any) -> None:
    path = half / "checkpoints" / "run.json"
    flip_a_bit(path)
    assert "run.json: is damaged" in said(capsys, "resume", str(half))
    path.unlink()
    assert "run.json: is missing" in said(capsys, "resume", str(half))


def test_a_folder_with_a_driver_at_work_is_refused(half: Path, capsys: Any, calm: tuple[str, str, int]) -> None:
    with locked(half):
        message = said(capsys, "resume", str(half))
        assert f"a driver is at work here (pid {os.getpid()} on " in message
    assert result(resume(half), half) == calm


def test_the_lock_of_a_driver_that_died_keeps_nobody_out(half: Path) -> None:
    """A dead driver's lock files are still there; the system has let go of the lock itself."""
    (half / ".lock").touch()
    (half / ".driver.json").write_text('{"pid": 1, "host": "elsewhere"}')
    with locked(half):
        pass
    assert not (half / ".driver.json").exists()


def test_other_program_versions_are_named(half: Path, calm: tuple[str, str, int]) -> None:
    identity = read_identity(half)
    identity.model_copy(update={"versions": identity.versions | {"torch": "1.0"}}).write(half)
    plug = Plug()
    assert result(resume(half, (), plug), half) == calm
    assert plug.notes[0].startswith("other program versions than at the start may give other bits: torch 1.0 then, ")


# --- no room


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_one_line(half: Path, capsys: Any) -> None:
    shutil.rmtree(half / "checkpoints/rounds")
    (half / "checkpoints/rounds").write_text("in the way")
    assert main(["resume", str(half)]) == 2
    assert "cannot be made (Not a directory)" in capsys.readouterr().err
    assert status(half) == "failed"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_ends_the_run_with_one_line_and_it_goes_on_when_there_is_room(
    half: Path, calm: tuple[str, str, int], capsys: Any
) -> None:
    full = half / "rounds" / f".part-000004.parquet.{os.getpid()}.part"
    full.symlink_to("/dev/full")
    assert main(["resume", str(half)]) == 2
    assert "part-000004.parquet: cannot be written (No space left" in capsys.readouterr().err
    assert status(half) == "failed"
    full.unlink(missing_ok=True)
    assert result(resume(half), half) == calm


def test_a_run_of_a_release_that_accepted_settings_without_effect_goes_on(
    settings: dict[str, Any], calm: tuple[str, str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = {"kind": "local", "num_actors": 2, "gpus_per_actor": None}
    older = settings | {"fleet": fleet, "local": settings["local"] | {"momentum": 0.5}}
    with monkeypatch.context() as before:
        before.setattr("fibec_ray.fleets.settings.refuse_idle", lambda section: None)
        before.setattr("fibec_ray.learning.job.refuse_idle", lambda section: None)
        folder = interrupted(older, tmp_path / "run", IN_ROUND_3)
    run = resume(folder)
    assert run is not None and result(run, folder)[0] == calm[0]
    assert not verify(folder).differences
