"""Federations whose devices are answered in text: whole runs, resumed ones, what is planned, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_instructions, named

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.evaluation import at_rows
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.planning import plan_round
from fibec_ray.preflight.anatomy import anatomy
from fibec_ray.preflight.exchange import Exchange
from fibec_ray.preflight.rehearsal import Rehearsal
from fibec_ray.preflight.samples import Samples
from fibec_ray.preflight.work import Devices
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.simulation import cache_dir, prepare, simulate
from fibec_ray.tasks.scores import Scores
from fibec_ray.tensors import Tensors
from fibec_ray.types import Predictions


def ran(
    settings: dict[str, Any], folder: Path, lanes: int | None = None
) -> tuple[WorkerSpec, list[DeviceReport], Tensors]:
    experiment = check(settings, "test")
    folder.mkdir()
    prepared = prepare(experiment, folder)
    fleet_config = FleetConfig(kind="local", lanes=lanes or "auto")
    worker_spec = WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir(), fleet_config)
    fleet = LocalFleet(worker_spec)
    reports = list(fleet.setup().reports)
    for round_ in range(experiment.rounds):
        reports += fleet.run_round(plan_round(worker_spec.job, round_)).reports
    return worker_spec, reports, fleet.adapter()


@pytest.mark.parametrize("method", ["fedavg", "fibecfed", "fipa"])
def test_a_run_from_beginning_to_end(method: str, tmp_path: Path) -> None:
    """Its log has perplexities, and what was planned is what was sent and, within a quarter, computed."""
    run = simulate(check(make_instructions(method), "test"), tmp_path / "run")
    last = read_rounds(run.folder).to_pylist()[-1]
    for model in ("global", "personal"):
        assert 0 <= last[f"{model}_accuracy"] <= 1 and math.isfinite(last[f"{model}_loss"])
        assert last[f"{model}_perplexity"] > 1
    assert last["global_metric"] == last["global_accuracy"]
    assert set(run.prepared.anchors) == {"majority", "own_majority"}


@pytest.mark.parametrize("method", ["fibecfed", "fipa"])
def test_lanes_come_to_what_devices_come_to_alone(method: str, tmp_path: Path) -> None:
    """And the plan to what both have sent and, within a quarter, computed."""
    local = {"optimizer": "sgd", "learning_rate": 0.1}
    worker_spec, alone, adapter = ran(make_instructions(method, local=local), tmp_path / "alone")
    _, reports, other = ran(make_instructions(method, local=local), tmp_path / "lanes", lanes=3)
    for name, value in adapter.items():
        torch.testing.assert_close(other[name], value, atol=1e-4, rtol=1e-4)
    counts = [(r.device, r.round, r.num_steps, r.flops, r.bytes_up, r.bytes_down) for r in alone]
    assert [(r.device, r.round, r.num_steps, r.flops, r.bytes_up, r.bytes_down) for r in reports] == counts

    samples = Samples.of(Federation.load(worker_spec.data_dir))
    made = anatomy(worker_spec.job, samples.form)
    rehearsal = Rehearsal(worker_spec.job, made)
    exchange, devices = Exchange(rehearsal), Devices(rehearsal, samples)
    flops = 0.0
    for report in alone:
        setup = report.round < 0
        flops += (devices.setup(report.device) if setup else devices.device_round(report.device, report.round)).flops
        sent = (
            exchange.setup(report.device, samples.num_words)
            if setup
            else exchange.message(report.device, report.round, report.num_samples)
        )
        assert (report.bytes_down, report.bytes_up_delta) == (sent.down, sent.up_delta)
        assert report.bytes_up_extras <= sent.up_extras
    assert flops == pytest.approx(sum(report.flops for report in alone), rel=0.25)


def test_a_resumed_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    calm = simulate(check(make_instructions("fibecfed"), "test"), tmp_path / "calm")

    class Stop(Exception):
        pass

    class Stops(Callback):
        def on_round_end(self, row: Any) -> None:
            if row["round"] == 0:
                raise Stop

    with pytest.raises(Stop):
        simulate(check(make_instructions("fibecfed"), "test"), tmp_path / "broken", Stops())
    assert main(["resume", str(tmp_path / "broken")]) == 0
    rows = read_rounds(tmp_path / "broken").to_pylist()
    for found, expected in zip(rows, calm.rows, strict=True):
        same = ("round", "adapter_digest", "train_loss", "global_perplexity", "personal_perplexity", "sim_time_s")
        assert [found[name] for name in same] == [expected[name] for name in same]


def test_perplexity_weighs_tokens_alike_and_loss_samples() -> None:
    """Losses 1 over 1 token and 3 over 3: the mean over samples is 2, over tokens (1 + 3 * 3) / 4."""
    found = Predictions(torch.ones(2).long(), torch.tensor([1, 0]), torch.tensor([1.0, 3.0]), torch.tensor([1, 3]))
    score = check(make_instructions(), "test").task.score
    assert score(found) == Scores(0.5, 2.0, 0.5, pytest.approx(math.exp(2.5)))
    assert score(Predictions.join([found, Predictions.join([])])) == score(found)
    one = score(at_rows(found, torch.tensor([0])))
    assert one is not None and one.perplexity == pytest.approx(math.e)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"backbone": {"head": "mean_pool"}},
            "task instructions needs answers in text; backbone.head mean_pool cannot do that",
        ),
        ({"method": "fedfisher"}, "method.aggregator: fedfisher takes the expectation over all labels"),
        (
            {"method": {"name": "x", "curriculum": {"kind": "fisher", "label": "expected"}}},
            "method.curriculum: fisher takes the expectation over all labels, but texts and tags have too many; set",
        ),
        (
            {"method": {"name": "x", "aggregator": {"kind": "momentum", "of": {"kind": "fisher_merging"}}}},
            "method.aggregator: fisher_merging takes the expectation",
        ),
        ({"backbone": {"config": {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1}}}, None),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(changes: dict[str, Any], says: str | None) -> None:
    settings = make_instructions()
    for key, value in changes.items():
        value = named("methods", value) if isinstance(value, str) else value
        settings[key] = value if key == "method" else settings[key] | value
    if says is None:
        check(settings, "test")
        return
    with pytest.raises(ConfigError, match=says):
        check(settings, "test")


@pytest.mark.parametrize("aggregator", ["fedfisher", "fisher_merging"])
def test_drawn_labels_will_do_for_fisher_information(aggregator: str, tmp_path: Path) -> None:
    method = {"name": "x", "aggregator": {"kind": aggregator, "label": "sampled", "max_samples": 4}}
    settings = make_instructions() | {"method": method, "rounds": 1}
    _, reports, adapter = ran(settings, tmp_path / "run")
    assert len(reports) == 3 and all(bool(value.isfinite().all()) for value in adapter.values())
