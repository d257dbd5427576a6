"""Runs under every schedule: resumed, verified, replayed and planned; and the schedules that must equal `sync`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import make_digits
from runs.interrupted import interrupted, result
from schedules.kinds import SCHEDULED, settings_of

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.preflight.check import foresee
from fibec_ray.roundlog.reader import read_devices, read_rounds
from fibec_ray.runs.replay import replay
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import Finished, cache_dir, prepare, simulate
from fibec_ray.runs.verify import verify


def run_of(settings: dict[str, Any], folder: Path) -> Finished:
    return simulate(check(settings, "test"), folder)


@pytest.mark.parametrize("kind", SCHEDULED)
def test_a_run_goes_on_where_it_stopped_and_can_be_repeated(kind: str, tmp_path: Path) -> None:
    settings = settings_of(kind, checkpoint={"keep": "all"})
    expected = result(run_of(settings, tmp_path / "calm"), tmp_path / "calm")
    folder = interrupted(settings, tmp_path / "run", 4 if kind == "async" else 8)
    assert result(resume(folder), folder) == expected
    assert verify(folder, 3).differences == []
    rows = [row for row in read_devices(folder).to_pylist() if row["round"] >= 0]
    oldest = max(rows, key=lambda row: row["staleness"])
    assert oldest["staleness"] > 0
    assert replay(folder, oldest["round"], oldest["device"]).differences == []


@pytest.mark.parametrize("kind", SCHEDULED)
def test_the_log_has_staleness_and_the_clock(kind: str, tmp_path: Path) -> None:
    folder = run_of(settings_of(kind), tmp_path / "run").folder
    rounds = [row for row in read_rounds(folder).to_pylist() if row["round"] >= 0]
    devices = [row for row in read_devices(folder).to_pylist() if row["round"] >= 0]
    for row in rounds:
        ages = [each["staleness"] for each in devices if each["round"] == row["round"]]
        assert row["num_devices"] == len(ages) and row["num_late"] == sum(age > 0 for age in ages)
        assert row["mean_staleness"] == pytest.approx(sum(ages) / len(ages))
    times = [0.0, *(row["sim_time_s"] for row in rounds)]
    assert times == sorted(times)
    assert any(row["num_late"] for row in rounds) or any(row["num_dropped"] for row in rounds)


def models(run: Finished) -> list[str]:
    """The server's tensors after each round."""
    return [row["adapter_digest"] for row in run.rows]


EQUAL = {"partition": "iid", "cohort_size": 3, "rounds": 4}
"""Shards of one size: every device works as long as any other."""


@pytest.mark.parametrize("schedule", ["buffered", {"kind": "deadline", "over_commit": 1}])
@pytest.mark.parametrize("method", ["fedavg", "fedper"])
def test_without_differences_in_speed_it_is_synchronous_to_the_bit(schedule: Any, method: str, tmp_path: Path) -> None:
    """FedBuff with a buffer of one cohort is FedAvg, and so is a deadline that is never missed."""
    plain = run_of(make_digits(method, **EQUAL), tmp_path / "plain")
    other = run_of(make_digits(method, **EQUAL, schedule=schedule), tmp_path / "other")
    assert models(other) == models(plain)
    log = [[row for row in read_devices(run.folder).to_pylist() if row["round"] >= 0] for run in (plain, other)]
    same = ("round", "device", "update_digest", "train_loss", "flops", "bytes_up", "staleness")
    assert [[row[name] for name in same] for row in log[0]] == [[row[name] for name in same] for row in log[1]]
    times = [[row["sim_time_s"] for row in run.rows] for run in (plain, other)]
    assert times[0] == pytest.approx(times[1]), "predicted times are those of the work that was done"


def test_fedasync_that_takes_over_every_model_follows_its_devices(tmp_path: Path) -> None:
    """With m = 1 the server's model is the last one that arrived; with one device at work that is FedAvg's."""
    one = {"rounds": 4, "cohort_size": 1}
    plain = run_of(make_digits(**one), tmp_path / "plain")
    mixed = run_of(make_digits(**one, schedule={"kind": "async", "mixing": 1.0}), tmp_path / "mixed")
    assert models(plain) == models(mixed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "scaffold", "schedule": "buffered"}, "scaffold needs all devices .* set schedule: sync"),
        ({"method": "centralised", "schedule": "async"}, "schedule async has no effect with method.pooled"),
        ({"method": "centralised", "sampler": "poisson"}, "sampler poisson has no effect with method.pooled"),
        ({"schedule": "async", "sampler": "poisson"}, "poisson draws cohorts of any size"),
        ({"schedule": "deadline", "cohort_size": 6}, "over_commit 1.3 starts 8 devices"),
        ({"schedule": {"kind": "buffered", "buffer": 7}}, "buffer 7 is never full"),
        ({"method": "krum", "schedule": "async"}, "cohort"),
    ],
)
def test_what_does_not_go_together_is_rejected(changes: dict[str, Any], message: str) -> None:
    method = changes.get("method", "fedavg")
    with pytest.raises(ConfigError, match=message):
        check(make_digits(method, **{key: value for key, value in changes.items() if key != "method"}), "test")


@pytest.mark.parametrize("kind", SCHEDULED)
def test_the_plan_foresees_bytes_and_operations(kind: str, tmp_path: Path) -> None:
    experiment = check(settings_of(kind, "fedavg"), "test")
    foreseen = foresee(experiment, prepare, tmp_path / "planned", cache_dir())
    rounds = [row for row in simulate(experiment, tmp_path / "run").rows if row["round"] >= 0]
    assert foreseen.traffic.total == rounds[-1]["bytes_total"]
    assert list(foreseen.work.rounds_flops) == pytest.approx([row["flops"] for row in rounds])
