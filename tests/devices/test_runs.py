"""Runs whose devices differ: the log has their time and energy, and the run keeps the user's files."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_digits
from runs.interrupted import interrupted, result

from fibec_ray import seeds
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check, load_experiment
from fibec_ray.errors import ConfigError, RunDirError
from fibec_ray.files.yaml_text import to_yaml
from fibec_ray.jobs.parcel import settings_for
from fibec_ray.preflight.check import foresee
from fibec_ray.roundlog.reader import read_devices, read_rounds, read_table
from fibec_ray.runs.begin import begin
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import cache_dir, prepare, simulate
from fibec_ray.runs.verify import verify


def devices_file(folder: Path, gflops: float = 1.0) -> str:
    columns: dict[str, Any] = {"device": range(6), "gflops": [gflops * (k + 1) for k in range(6)]}
    columns |= {"up_mbps": [8.0] * 6, "down_mbps": [16.0] * 6, "speed_class": ["old", "new"] * 3}
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), folder / "devices.parquet")
    return str(folder / "devices.parquet")


def windows_file(folder: Path) -> str:
    pq.write_table(pa.table({"device": list(range(6)), "start_s": [0.0] * 6, "end_s": [1e9] * 6}), folder / "w.parquet")
    return str(folder / "w.parquet")


def test_the_log_has_times_and_energy_by_hand(tmp_path: Path) -> None:
    """Device k computes at k + 1 Gflop/s, and 1e9 flops cost a joule. Up 8 Mbit/s is 1 MB/s, down twice that."""
    energy = {"gflops_per_joule": 1, "up_j_per_mb": 2, "down_j_per_mb": 3}
    system = {"kind": "file", "path": devices_file(tmp_path), **energy}
    simulate(check(make_digits(rounds=2, system=system), "test"), tmp_path / "run")
    rows = [row for row in read_devices(tmp_path / "run").to_pylist() if row["round"] >= 0]
    for row in rows:
        seconds = row["flops"] / (1e9 * (row["device"] + 1)) + row["bytes_up"] / 1e6 + row["bytes_down"] / 2e6
        assert row["sim_time_s"] == pytest.approx(seconds)
        joules = row["flops"] / 1e9 + 2 * row["bytes_up"] / 1e6 + 3 * row["bytes_down"] / 1e6
        assert row["energy_j"] == pytest.approx(joules)
    for number, row in enumerate(r for r in read_rounds(tmp_path / "run").to_pylist() if r["round"] >= 0):
        assert row["energy_j"] == pytest.approx(sum(each["energy_j"] for each in rows if each["round"] == number))
        assert row["num_dropped"] == 0
    found = {row["device"]: row["speed_class"] for row in read_table(tmp_path / "run", "evaluations").to_pylist()}
    assert found == {0: "old", 1: "new", 2: "old", 3: "new", 4: "old", 5: "new"}


def test_a_run_goes_on_with_its_own_copies_wherever_its_folder_is(tmp_path: Path) -> None:
    """The user's files have changed or are gone since, and the run directory has moved."""
    system = {"kind": "file", "path": devices_file(tmp_path), "jitter": 0.1}
    system |= {"availability": {"kind": "windows", "path": windows_file(tmp_path)}}
    settings = make_digits(rounds=3, system=system)
    expected = result(simulate(check(settings, "test"), tmp_path / "calm"), tmp_path / "calm")
    folder = interrupted(settings, tmp_path / "run", 2 * settings["cohort_size"] + 1)
    devices_file(tmp_path, gflops=7.0)
    (tmp_path / "w.parquet").unlink()
    shutil.move(folder, tmp_path / "elsewhere")
    assert result(resume(tmp_path / "elsewhere"), tmp_path / "elsewhere") == expected
    assert verify(tmp_path / "elsewhere").differences == []


def test_a_start_that_fails_leaves_no_copy_behind(tmp_path: Path) -> None:
    settings = make_digits(rounds=1, system={"kind": "file", "path": devices_file(tmp_path)})
    with pytest.raises(ConfigError, match="min_samples"):
        simulate(check(settings | {"partition": {"kind": "iid", "min_samples": 1000}}, "test"), tmp_path / "run")
    assert not (tmp_path / "run" / "system").exists()
    (tmp_path / "run" / "system").mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / ".starting").touch()  # as a killed start leaves it
    assert simulate(check(settings, "test"), tmp_path / "run").rows


def test_the_settings_of_a_run_start_another_one(tmp_path: Path) -> None:
    settings = make_digits(rounds=1, system={"kind": "file", "path": devices_file(tmp_path)})
    first = simulate(check(settings, "test"), tmp_path / "run")
    again = simulate(load_experiment(tmp_path / "run" / "config.yaml"), tmp_path / "again")
    assert result(again, tmp_path / "again")[0] == result(first, tmp_path / "run")[0]
    assert (tmp_path / "again" / "system" / "path.parquet").is_file()


def test_a_command_with_resume_goes_on_unless_the_users_file_has_changed(tmp_path: Path) -> None:
    path = devices_file(tmp_path)
    settings = make_digits(rounds=3, system={"kind": "file", "path": path})
    folder = interrupted(settings, tmp_path / "run", 2 * settings["cohort_size"] + 1)
    devices_file(tmp_path, gflops=7.0)
    with pytest.raises(RunDirError, match="differs from .* put the old file back, or start a new run"):
        begin(check(settings, "test"), folder, True, Callback())
    devices_file(tmp_path)
    assert begin(check(settings, "test"), folder, True, Callback()) is not None


def test_files_travel_with_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    devices_file(tmp_path), windows_file(tmp_path)
    system = {"kind": "file", "path": "devices.parquet", "availability": {"kind": "windows", "path": "w.parquet"}}
    (tmp_path / "work").mkdir()
    experiment = check(make_digits(system=system), "test")
    settings = settings_for(experiment, tmp_path / "work")["system"]
    for path in (settings["path"], settings["availability"]["path"]):
        assert (tmp_path / "work" / path).is_file()


# --- availability


def write_windows(folder: Path, starts: list[float]) -> dict[str, Any]:
    """Each device is there from its own time on."""
    columns = {"device": list(range(len(starts))), "start_s": starts, "end_s": [1e12] * len(starts)}
    pq.write_table(pa.table(columns), folder / "w.parquet")
    return {"kind": "windows", "path": str(folder / "w.parquet")}


def test_only_devices_that_are_there_are_drawn(tmp_path: Path) -> None:
    """Devices 3 to 5 come after the run has ended."""
    system = {"availability": write_windows(tmp_path, [0.0, 0.0, 0.0, 1e9, 1e9, 1e9])}
    simulate(check(make_digits(rounds=4, cohort_size=2, system=system), "test"), tmp_path / "run")
    rows = [row for row in read_devices(tmp_path / "run").to_pylist() if row["round"] >= 0]
    assert {row["device"] for row in rows} == {0, 1, 2} and len(rows) == 8


def test_a_server_waits_for_devices_and_the_clock_shows_it(tmp_path: Path) -> None:
    """Two devices are needed: the first is there from 100 s on, the second from 500 s."""
    system = {"availability": write_windows(tmp_path, [100.0, 500.0, 1e9, 1e9, 1e9, 1e9])}
    simulate(check(make_digits(rounds=2, cohort_size=2, system=system), "test"), tmp_path / "run")
    rows = [row for row in read_rounds(tmp_path / "run").to_pylist() if row["round"] >= 0]
    assert all(row["num_devices"] == 2 for row in rows) and 500 < rows[0]["sim_time_s"] < 600
    assert verify(tmp_path / "run", 2).differences == []


def test_a_federation_that_is_never_there_at_once_is_named(tmp_path: Path) -> None:
    windows = write_windows(tmp_path, [0.0] + [1e12 - 1] * 5)
    settings = make_digits(rounds=1, cohort_size=2, system={"availability": windows})
    with pytest.raises(ConfigError, match="never available at once .* lower cohort_size"):
        simulate(check(settings, "test"), tmp_path / "run")


# --- drop-outs


def test_devices_that_drop_out_send_nothing_and_keep_their_state(tmp_path: Path) -> None:
    """Their rounds are known beforehand; the others report. Each device's state is that of its last sound round."""
    system = {"dropout": 0.5}
    experiment = check(make_digits("scaffold", rounds=4, system=system, checkpoint={"keep": "all"}), "test")
    simulate(experiment, tmp_path / "run")
    drawn = [plan_round(experiment, t) for t in range(4)]
    share = partial(experiment.system.share_done, experiment.seed)
    out = [{device for device in cohort if share(device, t) < 1} for t, cohort in enumerate(drawn)]
    assert sum(map(len, out)) > 2
    rows = [row for row in read_rounds(tmp_path / "run").to_pylist() if row["round"] >= 0]
    assert [row["num_dropped"] for row in rows] == [len(each) for each in out]
    devices = read_devices(tmp_path / "run").to_pylist()
    for t, cohort in enumerate(drawn):
        assert {row["device"] for row in devices if row["round"] == t} == set(cohort) - out[t]
    assert verify(tmp_path / "run", 4).differences == []
    # Each has received the model; operations are those of the share of its batches that it trained on.
    down = devices[0]["bytes_down"]
    assert [row["dropped_bytes"] for row in rows] == [down * len(each) for each in out]
    assert all((row["dropped_flops"] > 0) == bool(each) for row, each in zip(rows, out, strict=True))
    assert all((row["dropped_energy_j"] > 0) == bool(each) for row, each in zip(rows, out, strict=True))


def test_a_round_in_which_all_drop_out_changes_nothing(tmp_path: Path) -> None:
    experiment = check(make_digits(rounds=3, system={"dropout": 0.999}), "test")
    simulate(experiment, tmp_path / "run")
    rows = read_rounds(tmp_path / "run").to_pylist()
    assert {row["adapter_digest"] for row in rows} == {rows[0]["adapter_digest"]}
    assert all((row["num_devices"], row["num_dropped"]) == (0, 3) for row in rows[1:])


def test_partial_work_trains_on_a_share_of_the_batches(tmp_path: Path) -> None:
    """The share is the same as without partial work, and at least one batch is trained on."""
    experiment = check(make_digits(rounds=3, system={"dropout": 0.6, "partial_work": True}), "test")
    simulate(experiment, tmp_path / "run")
    seen = [row for row in read_devices(tmp_path / "run").to_pylist() if row["round"] >= 0]
    assert len(seen) == 9
    shares = []
    for row in seen:
        share = experiment.system.share_done(experiment.seed, row["device"], row["round"])
        batches = math.ceil(row["num_samples"] / 8)
        assert row["num_batches_seen"] == (batches if share == 1 else max(1, int(share * batches)))
        assert row["num_steps"] == 2 * row["num_batches_seen"]  # two local epochs
        shares.append(share)
    assert 0 < sum(share < 1 for share in shares) < 9
    rounds = [row for row in read_rounds(tmp_path / "run").to_pylist() if row["round"] >= 0]
    assert {row["num_dropped"] for row in rounds} == {0}
    planned = foresee(experiment, prepare, tmp_path / "planned", cache_dir())
    assert list(planned.work.rounds_flops) == pytest.approx([row["flops"] for row in rounds])


def plan_round(experiment: Experiment, round_: int) -> tuple[int, ...]:
    """The drawn devices of a round, drop-outs included."""
    rng = seeds.numpy_generator(experiment.seed, "cohort", round_)
    return tuple(map(int, rng.choice(experiment.num_devices, size=experiment.cohort_size, replace=False)))


# --- settings


def load(tmp_path: Path, *overrides: str, **changes: Any) -> Any:
    path = tmp_path / "e.yaml"
    path.write_text(to_yaml(make_digits(**changes)))
    return load_experiment(path, overrides)


def test_overrides_choose_kinds_and_drop_what_no_longer_applies(tmp_path: Path) -> None:
    found = load(tmp_path, "system.kind=classes", "system.shares.silo=2", system={"spread": 0.5, "jitter": 0.1})
    assert (found.system.kind, found.system.shares.silo, found.system.jitter) == ("classes", 2, 0.1)
    found = load(tmp_path, "system.availability=markov", "system.availability.daily=0.2")
    assert (found.system.kind, found.system.availability.daily) == ("simple", 0.2)


def test_a_yaml_of_earlier_releases_means_the_same(tmp_path: Path) -> None:
    found = load(tmp_path, system={"gflops": 50, "up_mbps": 5, "down_mbps": 20, "spread": 0.3}).system
    assert (found.kind, found.gflops, found.up_mbps, found.down_mbps, found.spread) == ("simple", 50, 5, 20, 0.3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["system.up_spread=0.1"], "kind simple does not have it; set system.kind to lognormal or classes"),
        (["system.kind=clases"], "did you mean 'classes'?"),
        (["system.availability.daily=0.1"], "kind always does not have it; set system.availability.kind to markov"),
        (["system.kind=file"], "system.path: is missing; set it"),
        (["system.kind=file", "system.path=none.parquet"], "system.path: none.parquet: no such file"),
        (["method=centralised", "system.dropout=0.1"], "system.dropout has no effect with method.pooled"),
    ],
)
def test_wrong_settings_are_named_with_the_remedy(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, *overrides)
    assert message in str(raised.value)
