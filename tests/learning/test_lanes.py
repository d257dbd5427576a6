"""Results of devices trained in lanes match training each device alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BACKBONES, DOES_NOT_APPLY, classes, make_tiny, settings_on, shard_of
from rotation import in_turn
from torch import Tensor

from fibec_ray.cli.console import RunView
from fibec_ray.config.load import check
from fibec_ray.config.names import method_files
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.errors import ConfigError
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.calibration import REPEATS, STEPS, find_lanes, step_seconds
from fibec_ray.learning.group_worker import GroupWorker
from fibec_ray.learning.lane_passes import LEAST_FILL
from fibec_ray.learning.lanes import Lanes
from fibec_ray.learning.planning import plan_round
from fibec_ray.reports import DeviceReport
from fibec_ray.runs.callbacks import read_summary
from fibec_ray.runs.simulation import cache_dir, prepare, simulate
from fibec_ray.tensors import Tensors
from fibec_ray.types import Calibration, EvaluationResult

LANES = 3


def spec_of(settings: dict[str, Any], folder: Path, lanes: int | None) -> WorkerSpec:
    experiment = check(settings, "test")
    folder.mkdir(parents=True)
    prepared = prepare(experiment, folder)
    fleet = FleetConfig(kind="local", lanes=lanes or "auto")
    return WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir(), fleet)


def two_rounds(worker_spec: WorkerSpec) -> tuple[Tensors, list[DeviceReport], EvaluationResult]:
    fleet = LocalFleet(worker_spec)
    reports = list(fleet.setup().reports)
    for round_ in range(2):
        reports += fleet.run_round(plan_round(worker_spec.job, round_)).reports
    return fleet.adapter(), reports, fleet.evaluate(1)


CASES = [(p.stem, where) for p in method_files() for where in BACKBONES if (p.stem, where) not in DOES_NOT_APPLY]
ALONE = {
    "adalora", "attempt", "delta-lora", "dora", "fedavg-full", "fedex-lora", "fedmomentum", "fedpeptao",
    "fibecfed-authors", "fibecfed-authors-top", "flora", "ia3", "idpg", "loha", "lokr", "lpt", "p-tuning",
    "p-tuning-v2", "prefix-tuning", "prompt-tuning", "slora", "vera",
}  # fmt: skip
"""Methods that are computed for one device at a time, because of their PEFT kind or their dropout."""
ADAMW = {"fedavg", "fibecfed", "ditto", "moon", "fedprox", "hetlora"}
"""Methods that are also compared under AdamW. Its first steps divide a gradient by itself, so that rounding decides the
sign of a gradient near 0: single entries may differ. The others are compared under SGD, and more strictly.
"""
AMPLIFIES = {"fedfisher": 1e-4, "fedkseed": 1e-3, "fipa-paper": 1e-3, "fibecfed-fipa": 1e-5}
"""The server divides by curvature that may be near 0: rounding grows by its inverse. FedKSeed divides differences of
losses by 2 epsilon = 0.001.
"""


@pytest.mark.parametrize(("method", "where"), in_turn(CASES, 5, "lanes equal alone"))
def test_lanes_match_devices_alone(method: str, where: str, tmp_path: Path) -> None:
    """Two rounds of SGD, uneven steps and lengths: adapters, losses, and all that is counted."""
    compare(method, {"optimizer": "sgd", "learning_rate": 0.1}, where, tmp_path, AMPLIFIES.get(method, 2e-6))


@pytest.mark.parametrize("method", sorted(ADAMW))
def test_lanes_match_devices_alone_under_adamw(method: str, tmp_path: Path) -> None:
    compare(method, {}, "encoder", tmp_path, 1e-5)


def compare(method: str, local: dict[str, Any], where: str, tmp_path: Path, tolerance: float) -> None:
    settings = settings_on(where, method)
    settings["local"] = settings.get("local", {}) | local
    alone, reports, scores = two_rounds(spec_of(settings, tmp_path / "alone", 1))
    if method in ALONE:
        with pytest.raises(ConfigError, match=r"fleet.lanes: 3 devices cannot train in one pass here, because"):
            spec_of(settings, tmp_path / "refused", LANES).worker()
        return
    found, reports_3, scores_3 = two_rounds(spec_of(settings, tmp_path / "lanes", LANES))
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(scores_3.shared.losses, scores.shared.losses, atol=tolerance, rtol=tolerance)
    for device, own in scores.personal.items():
        torch.testing.assert_close(scores_3.personal[device].losses, own.losses, atol=tolerance, rtol=tolerance)
    assert [counted(report) for report in reports_3] == [counted(report) for report in reports]


def counted(report: DeviceReport) -> tuple[Any, ...]:
    r = report
    return r.device, r.round, r.num_steps, r.num_samples_seen, r.flops, r.bytes_up, r.bytes_down, r.kept_neurons


def test_one_step_of_sgd_agrees_to_1e_6(tiny_settings: Any, tmp_path: Path) -> None:
    """What the optimiser is given: AdamW's first steps divide a gradient by itself, so tiny ones lose their sign."""
    local = {"optimizer": "sgd", "learning_rate": 0.1, "clip": None, "max_steps": 1}
    worker = spec_of(tiny_settings("fedavg", local=local), tmp_path / "run", LANES).worker()
    plan, broadcast = first_round(worker)
    alone = [worker.train(plan, device, broadcast)[0].delta for device in plan.cohort]
    together = [update.delta for update, _ in worker.train_group(plan, plan.cohort, broadcast)]
    for one, other in zip(alone, together, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, atol=1e-6, rtol=0)
    assert any(value.abs().max() > 1e-3 for value in alone[0].values())


def first_round(worker: GroupWorker) -> tuple[Any, Any]:
    from fibec_ray.learning.server import Server

    server = Server(worker.job, worker.initial, worker.layout)
    server.setup([])
    return plan_round(worker.job, 0), server.broadcast(0)


def test_a_group_of_one_is_computed_as_without_lanes(tiny_settings: Any, tmp_path: Path) -> None:
    worker = spec_of(tiny_settings("fedavg"), tmp_path / "run", LANES).worker()
    plan, broadcast = first_round(worker)
    (alone, _), ((grouped, _),) = worker.train(plan, 4, broadcast), worker.train_group(plan, (4,), broadcast)
    assert all(torch.equal(alone.delta[name], value) for name, value in grouped.delta.items())


def test_a_lane_that_diverges_sends_nothing_and_says_why(tiny_settings: Any, tmp_path: Path) -> None:
    worker = spec_of(tiny_settings("fedavg", local={"learning_rate": 1e30}), tmp_path / "run", LANES).worker()
    plan, broadcast = first_round(worker)
    diverged = [(update, report) for update, report in worker.train_group(plan, plan.cohort, broadcast) if update.fault]
    assert diverged, "one step alone stays finite; several do not"
    for update, report in diverged:
        assert update.fault == "the update is not finite; lower local.learning_rate"
        assert update.delta == {} and report.bytes_up == 0


# --- on a model, by hand


@pytest.fixture
def lanes(tiny_settings: Any, tmp_path: Path) -> Lanes:
    worker = spec_of(tiny_settings("fedavg"), tmp_path / "run", LANES).worker()
    lanes = worker._at_least(LANES)
    for seed, lane in enumerate(lanes.models):
        rng = torch.Generator().manual_seed(seed)
        lane.load({name: 0.1 * torch.randn(p.shape, generator=rng) for name, p in lane.trainable.items()})
    return lanes


SHARDS = [shard_of([[5, 6, 7, 8], [9, 8, 7]]), shard_of([[5, 6, 7, 9, 4], [4, 8], [9, 9, 9]]), shard_of([[7] * 12])]
"""Of two, three and one samples; the last one is too long to share a pass with the others."""


def losses(lanes: Lanes, which: int) -> Tensor:
    shard = SHARDS[which]
    with torch.no_grad():
        return lanes.models[which].forward(shard.batch(torch.arange(shard.num_samples))).losses


def test_batches_that_would_be_mostly_padding_have_passes_of_their_own(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = lanes._model
    widths, whole = [], model.together

    def noted(batches: Any, *rest: Any) -> Any:
        widths.append([lane.batch.inputs["input_ids"].shape[1] for lane in batches])
        return whole(batches, *rest)

    monkeypatch.setattr(model, "together", noted)
    together = lanes.run([lambda: losses(lanes, 0), lambda: losses(lanes, 1), lambda: losses(lanes, 2)])
    assert widths == [[12], [4, 5]] and 4 / 5 >= LEAST_FILL > 5 / 12
    for which, found in enumerate(together):
        (alone,) = lanes.run([lambda which=which: losses(lanes, which)])  # type: ignore[misc]
        torch.testing.assert_close(found, alone)


def test_the_fisher_information_of_lanes_is_that_of_devices_alone(lanes: Lanes) -> None:
    """Two labels per pass, three lanes that need two, two and one groups: squares, traces and losses."""

    def scan(which: int) -> tuple[Tensor, Tensor, Tensors]:
        shard, model = SHARDS[which], lanes.models[which]
        batches = torch.arange(shard.num_samples).split(2)
        names = [name for name in model.trainable if model.is_adapter(name)]
        found = FisherScan(model, shard, batches, names, torch.Generator()).read("expected")
        return found.traces, found.losses, found.diagonal

    together = lanes.run([lambda: scan(0), lambda: scan(1), lambda: scan(2)])
    for which, found in enumerate(together):
        (alone,) = lanes.run([lambda which=which: scan(which)])  # type: ignore[misc]
        torch.testing.assert_close(found, alone, atol=1e-6, rtol=1e-4)
        assert float(alone[0].sum()) > 0


# --- how many


def test_as_few_lanes_as_do_as_much_or_as_many_on_a_gpu() -> None:
    """A step of n lanes takes 1 + n / 4 s: 32 get 3.56 done in a second, 64 3.76, and 100 3.85, which is 1.02 times as
    much as 64 do."""
    asked = []

    def seconds(lanes: int) -> float:
        asked.append(lanes)
        return 1 + lanes / 4

    assert find_lanes(seconds, 100).lanes == 64 and asked == [1, 2, 4, 8, 16, 32, 64, 100]
    assert find_lanes(seconds, 100, prefer_more=True).lanes == 100
    assert find_lanes(seconds, 6).lanes == 6
    assert find_lanes(float, 8).lanes == 1 and find_lanes(float, 8, prefer_more=True).lanes == 8


def test_a_slow_trial_in_between_does_not_end_the_search() -> None:
    """As measured on a GPU with a small base: an engine's own costs for each lane, and one trial that was disturbed."""
    times = {1: 18.5, 2: 43.0, 4: 45.0, 8: 70.0, 16: 130.0, 32: 260.0}
    assert find_lanes(times.__getitem__, 32, prefer_more=True).lanes == 32
    assert find_lanes(times.__getitem__, 32).lanes == 16


def test_the_search_ends_well_past_the_peak() -> None:
    asked = []

    def seconds(lanes: int) -> float:
        asked.append(lanes)
        return lanes**1.5 if lanes > 4 else 1.0

    assert find_lanes(seconds, 64, prefer_more=True).lanes == 4 and asked == [1, 2, 4, 8]


def test_lanes_that_do_not_fit_into_memory_end_the_search() -> None:
    def seconds(lanes: int) -> float:
        if lanes > 4:
            raise torch.OutOfMemoryError("too many")
        return 1.0

    found = find_lanes(seconds, 64)
    assert found == Calibration(4, {1: 1.0, 2: 2.0, 4: 4.0}, "8 lanes ran out of GPU memory")
    assert str(found) == "device-steps per second by lanes: 1: 1, 2: 2, 4: 4; 8 lanes ran out of GPU memory"
    assert find_lanes(seconds, 64, prefer_more=True).lanes == 4

    def nothing_fits(lanes: int) -> float:
        raise torch.OutOfMemoryError("too many")

    assert find_lanes(nothing_fits, 64) == Calibration(1, {}, "1 lane ran out of GPU memory")


def test_a_trial_takes_steps_as_a_round_does_and_leaves_the_model_as_it_is(tiny_settings: Any, tmp_path: Path) -> None:
    """By a clock that counts how often it is asked: three trials of three steps; the least is 1 / 3 of a tick."""
    worker_spec = spec_of(tiny_settings("fedavg"), tmp_path / "run", None)
    worker, ticks = worker_spec.worker(), iter(range(100))
    shard, before = worker._largest_shard(), worker.model.read()
    found = step_seconds(worker.model, shard, worker_spec.job.local, 2, clock=lambda: float(next(ticks)))  # type: ignore[arg-type]
    assert found == 1 / STEPS and next(ticks) == 2 * REPEATS
    assert all(torch.equal(value, before[name]) for name, value in worker.model.read().items())


def test_auto_is_one_lane_where_more_gain_nothing_or_cannot_be(tiny_settings: Any, tmp_path: Path) -> None:
    assert spec_of(tiny_settings("fedavg"), tmp_path / "float32", None).worker().calibrate(8).lanes == 1
    assert spec_of(tiny_settings("dora"), tmp_path / "dora", None).worker().calibrate(8).lanes == 1
    bfloat16 = tiny_settings("fedavg", backbone={"dtype": "bfloat16"})
    assert spec_of(bfloat16, tmp_path / "bfloat16", None).worker().calibrate(3).lanes in (1, 2, 3)


def test_the_trial_says_if_planned_memory_limited_it(tmp_path: Path) -> None:
    job = check(make_tiny(), "test").job(classes(2))
    planned = WorkerSpec(job, tmp_path, tmp_path, most_lanes=8)
    assert planned.lanes_to_try(20) == 8 and planned.lanes_to_try(5) == 5
    reached, stopped = Calibration(8, {4: 2.0, 8: 3.0}), Calibration(4, {4: 2.0})
    assert planned.with_limit(reached, 20).limit == "the plan has GPU memory for 8 lanes"
    assert planned.with_limit(reached, 8) == reached and planned.with_limit(stopped, 20) == stopped
    assert planned.with_limit(Calibration(1, {}), 20).limit is None, "no trial"
    out_of_memory = replace(stopped, limit="8 lanes ran out of GPU memory")
    assert planned.with_limit(out_of_memory, 20) == out_of_memory


def test_the_console_and_the_summary_say_what_the_trial_found(tmp_path: Path, capsys: Any) -> None:
    experiment = check(make_tiny("fedavg", backbone={"dtype": "bfloat16"}, rounds=1), "test")
    with RunView(experiment) as view:
        simulate(experiment, tmp_path / "run", view)
    summary = read_summary(tmp_path / "run")
    assert f"lanes {summary['lanes']} (device-steps per second by lanes: 1: " in capsys.readouterr().out
    rates = summary["lanes_trial"]["rates"]
    assert str(summary["lanes"]) in rates and min(rates.values()) > 0 and summary["lanes_trial"]["limit"] is None
