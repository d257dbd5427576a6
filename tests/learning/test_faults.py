"""Updates that must not be averaged: the server leaves them out, and says which and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds, classes, make_digits, make_tiny

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError, DeviceError, FleetError, RunError
from fibec_ray.fleets.ray.actors import ServerActor
from fibec_ray.fleets.ray.wire import to_wire
from fibec_ray.fleets.settings import FleetConfig, check_quorum
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.faults import NOT_FINITE
from fibec_ray.learning.job import Job
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.server import Server
from fibec_ray.roundlog.reader import read_devices, read_rounds
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.records import binding
from fibec_ray.runs.simulation import cache_dir, prepare, simulate
from fibec_ray.tensors import digest
from fibec_ray.types import DeviceUpdate, RoundPlan

Hurt = Callable[[DeviceUpdate, str], DeviceUpdate]
"""(a good update, a name of one of its tensors) -> a bad one"""


def filled(update: DeviceUpdate, name: str, value: float) -> DeviceUpdate:
    tensor = update.delta[name].clone()
    tensor.view(-1)[-1] = value
    return replace(update, delta=update.delta | {name: tensor})


def reshaped(update: DeviceUpdate, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> DeviceUpdate:
    return replace(update, delta=update.delta | {name: change(update.delta[name])})


HURT: dict[str, tuple[Hurt, str]] = {
    "nan": (lambda u, n: filled(u, n, float("nan")), "not finite"),
    "inf": (lambda u, n: filled(u, n, float("inf")), "not finite"),
    "minus inf": (lambda u, n: filled(u, n, float("-inf")), "not finite"),
    "extras that were not asked for": (
        lambda u, n: replace(u, extras={"x": torch.ones(2)}),
        "has 'x', which the method does not use",
    ),
    "transposed": (lambda u, n: reshaped(u, n, lambda t: t.T.contiguous()), r"has \(\d+, \d+\) values of type"),
    "flat": (lambda u, n: reshaped(u, n, torch.flatten), r"has \(\d+,\) values"),
    "a row less": (lambda u, n: reshaped(u, n, lambda t: t[1:]), "values of type"),
    "a row more": (lambda u, n: reshaped(u, n, lambda t: torch.cat([t, t[:1]])), "values of type"),
    "empty": (lambda u, n: reshaped(u, n, lambda t: t[:0]), "values of type"),
    "a scalar": (lambda u, n: reshaped(u, n, torch.sum), r"has \(\) values"),
    "float64": (lambda u, n: reshaped(u, n, torch.Tensor.double), "torch.float64"),
    "integers": (lambda u, n: reshaped(u, n, torch.Tensor.long), "torch.int64"),
    "a name less": (lambda u, n: replace(u, delta={k: v for k, v in u.delta.items() if k != n}), "lacks"),
    "no names": (lambda u, n: replace(u, delta={}), "lacks"),
    "a name more": (lambda u, n: replace(u, delta=u.delta | {"own": torch.zeros(2)}), "has 'own'"),
    "another name": (lambda u, n: replace(u, delta={("own" if k == n else k): v for k, v in u.delta.items()}), "lacks"),
    "fewer than no samples": (lambda u, n: replace(u, num_samples=-5), "reports -5 samples"),
    "its own word": (lambda u, n: replace(u, delta={}, fault="the battery is empty"), "the battery is empty"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable[..., Server], RoundPlan, list[DeviceUpdate]]:
    """How to have a server before round 0, and what its cohort sends."""
    folder = tmp_path_factory.mktemp("faults")
    prepared = prepare(check(make_tiny(), "test"), folder)

    def job(method: Any = None, **changes: Any) -> Job:
        settings = make_tiny({"name": "x", **(method or {})}, **changes)
        experiment = check(settings, "test")
        return experiment.job(prepared.answers(experiment.task))

    worker_spec = WorkerSpec(job(), folder, cache_dir())
    worker, plan = worker_spec.worker(), plan_round(worker_spec.job, 0)

    def server(method: Any = None, **changes: Any) -> Server:
        made = Server(job(method, **changes), worker.initial, worker.layout)
        made.setup([])
        return made

    broadcast = server().broadcast(0)
    return server, plan, [worker.train(plan, device, broadcast)[0] for device in plan.cohort]


@pytest.mark.parametrize("name", HURT)
def test_a_bad_update_is_left_out_as_if_it_had_not_come(name: str, trained: Any) -> None:
    make, _, (first, second, third) = trained
    hurt, why = HURT[name]
    one, other = make(), make()
    bad = one.absorb(0, [first, hurt(second, next(iter(second.delta))), third])
    assert other.absorb(0, [first, third]) == {}
    assert bad.keys() == {second.device} and one.digest() == other.digest()
    pytest.raises(DeviceError, check_quorum, FleetConfig(on_bad_update="error"), trained[1], (), bad).match(
        f"device {second.device}, round 1, train: .*{why}.*fleet.on_bad_update=quarantine"
    )


def test_an_update_that_names_another_device_is_its_sender_s_bad_one(trained: Any) -> None:
    """As the Ray fleet's server takes it; the actor's class needs no cluster."""
    make, plan, (first, second, third) = trained
    other = make()
    server = ServerActor(other._job, 1)
    server.start(to_wire(other._initial), other._layout)
    server.setup([])
    server.feed(*map(to_wire, (first, replace(second, device=third.device), third)))
    bad, digest = server.absorb(plan)
    assert bad == {second.device: f"the update claims to come from device {third.device}"}
    assert other.absorb(0, [first, third]) == {} and digest == server.digest() == other.digest()


def test_a_round_needs_a_quorum(trained: Any) -> None:
    plan = replace(trained[1], cohort=(7, 3, 9, 1))
    check_quorum(FleetConfig(quorum=0.5), plan, (3,), {9: "x"})
    check_quorum(FleetConfig(quorum=0.25), plan, (3, 1), {9: "x"})
    with pytest.raises(FleetError, match="round 1: 1 of 4 devices sent a sound update, fleet.quorum asks for 2"):
        check_quorum(FleetConfig(quorum=0.5), plan, (3, 1, 9), {})
    with pytest.raises(DeviceError, match="device 7, round 1, train: bad .1 of 4 devices"):
        check_quorum(FleetConfig(quorum=0.5), plan, (), dict.fromkeys((9, 3, 7), "bad"))


class Listener(Callback):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_message(self, text: str) -> None:
        self.notes.append(text)


def diverging(tiny_settings: Any, **changes: Any) -> Any:
    """Devices go further than the server takes if they take a second step, which some do."""
    fleet = {"kind": "local", **changes.pop("fleet", {})}
    local = {"learning_rate": 1e4, "batch_size": 8}
    return check(tiny_settings(rounds=1, cohort_size=6, local=local, fleet=fleet, **changes), "test")


def test_devices_that_go_too_far_are_quarantined(tiny_settings: Any, tmp_path: Path) -> None:
    listener = Listener()
    simulate(diverging(tiny_settings, fleet={"quorum": 0.1}), tmp_path / "run", listener)
    rows = [row for row in read_devices(tmp_path / "run").to_pylist() if row["quarantined"]]
    last = read_rounds(tmp_path / "run").to_pylist()[-1]
    assert 0 < len(rows) == last["num_quarantined"] < last["num_devices"] == 6
    assert last["num_lost"] == 0 and last["num_devices_trained"] == 6 - len(rows)
    assert all(row["num_steps"] > 1 and "lower local.learning_rate" in row["quarantined"] for row in rows)
    told = sorted(note.split(":")[1] for note in listener.notes)
    assert told == [f" device {row['device']} is quarantined" for row in rows]


def test_if_too_many_diverge_the_run_ends_with_the_reason(tiny_settings: Any, tmp_path: Path) -> None:
    for fleet in ({"quorum": 1.0}, {"on_bad_update": "error"}):
        with pytest.raises(DeviceError, match="round 1, train: the update's norm is .*; lower local.learning_rate"):
            simulate(diverging(tiny_settings, fleet=fleet), tmp_path / str(len(fleet) + len(str(fleet))))


def test_a_device_whose_training_is_not_finite_sends_nothing(tiny_settings: Any, tmp_path: Path) -> None:
    """A second step at such a rate leaves what floats can hold."""
    settings = tiny_settings(rounds=1, cohort_size=6, local={"learning_rate": 1e30, "batch_size": 4})
    fleet, worker_spec, _ = after_rounds(0, settings, tmp_path / "run")
    plan = plan_round(worker_spec.job, 0)
    server = Server(worker_spec.job, fleet._worker.initial, fleet._worker.layout)
    server.setup([])
    sent = [worker_spec.worker().train(plan, device, server.broadcast(0)) for device in plan.cohort]
    lost = [(update, report) for update, report in sent if update.fault]
    assert lost and all(update.delta == {} and report.bytes_up == 0 for update, report in lost)
    bad, before = server.absorb(0, [update for update, _ in sent]), server.digest()
    assert bad.keys() == set(plan.cohort) and bad[lost[0][0].device] == NOT_FINITE and server.digest() == before


# --- norms


def with_norm(update: DeviceUpdate, norm: float) -> DeviceUpdate:
    """All entries alike."""
    count = sum(value.numel() for value in update.delta.values())
    return replace(update, delta={n: torch.full_like(v, norm / count**0.5) for n, v in update.delta.items()})


@pytest.mark.parametrize("aggregator", ["mean", "momentum", "adam", "yogi", "adagrad", "nova", "median", "peptao"])
@pytest.mark.parametrize("norm", [1e7, 1e19, 1e25, 1e38])
def test_one_huge_update_does_not_stop_a_server(aggregator: str, norm: float, trained: Any) -> None:
    """Its square may not fit into float32: steps divided by the root of it would be 0 for ever."""
    make, _, (first, second, third) = trained
    server = make({"aggregator": aggregator})
    bad = server.absorb(0, [with_norm(first, norm), second, third])
    assert list(bad) == [first.device] and "the update's norm is" in bad[first.device]
    before = server.digest()
    assert server.absorb(0, [first, second]) == {} and server.digest() != before


def test_the_largest_norm_may_be_set(trained: Any) -> None:
    make, plan, updates = trained
    limited = make({}, server={"max_update_norm": 0.5})
    near, far = with_norm(updates[0], 0.499), with_norm(updates[1], 0.501)
    assert limited.absorb(0, [near, far]) == {
        far.device: "the update's norm is 0.501, above server.max_update_norm=0.5"
    }
    assert make({}).absorb(0, [near, far]) == {}


def test_without_a_setting_an_update_may_be_10_000_times_as_large_as_what_it_changes(trained: Any) -> None:
    make, _, (first, *_) = trained
    server = make({})
    shared = server.broadcast(0).shared.values()
    scale = max(sum(float(v.square().sum()) for v in shared), sum(v.numel() for v in shared)) ** 0.5
    assert server.absorb(0, [with_norm(first, 0.999e4 * scale)]) == {}
    assert list(make({}).absorb(0, [with_norm(first, 1.001e4 * scale)])) == [first.device]


def test_a_server_whose_numbers_are_no_longer_finite_ends_the_run_as_it_was(trained: Any) -> None:
    """A rate of the server that no float32 can hold: no device is to blame."""
    make, _, updates = trained
    server = make({"aggregator": {"kind": "momentum", "rate": 1e39}})
    before = digest(server.state())
    with pytest.raises(RunError, match="round 1: combining finite updates gave tensors of the server that are not"):
        server.absorb(0, updates)
    assert digest(server.state()) == before


def test_a_bound_on_norms_is_a_setting_that_results_depend_on(tiny_settings: Any) -> None:
    bound, free = (check(tiny_settings(server={"max_update_norm": norm}), "test") for norm in (2.0, None))
    assert binding(bound) != binding(free) and bound.job(classes(2)).server.max_update_norm == 2
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="server.max_update_norm: input should be"):
            check(tiny_settings(server={"max_update_norm": wrong}), "test")


# --- devices that do as they should

ONE_SAMPLE: dict[str, Any] = {
    "data": {"max_length": 16, "synthetic": {"num_train": 6, "num_test": 6}},
    "partition": {"kind": "iid"},
}
SGD: dict[str, Any] = {"local": {"optimizer": "sgd", "batch_size": 4}}
FIPA = {"kind": "fipa", "warmup_rounds": 0}
UNSEEN = {"target_modules": ["query", "dense"]}
"""The pooler is a `dense` too, and the loss does not see it."""
HONEST: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fedfisher of one sample": ({"aggregator": "fedfisher"}, ONE_SAMPLE),
    "fisher merging of one sample": ({"aggregator": "fisher_merging"}, ONE_SAMPLE),
    "fipa of one sample": ({"aggregator": FIPA}, ONE_SAMPLE),
    "nova of one sample": ({"aggregator": "nova"}, ONE_SAMPLE),
    "scaffold of one sample": ({"objective": "scaffold"}, ONE_SAMPLE | SGD),
    "fedfisher of a module unseen": ({"aggregator": "fedfisher", "peft": {"kind": "lora", **UNSEEN}}, {}),
    "adalora of a module unseen": ({"objective": "adalora", "peft": {"kind": "adalora", **UNSEEN}}, {}),
    "scaffold on a base that moves": ({"objective": "scaffold", "aggregator": "flora", "peft": "moving_lora"}, SGD),
    "pruning of equal ranks": ({"objective": "rank_pruning", "aggregator": "hetlora"}, {}),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_devices_are_not_quarantined(name: str, tiny_settings: Any, tmp_path: Path) -> None:
    method, settings = HONEST[name]
    _, _, reports = after_rounds(2, tiny_settings({"name": "x", **method}, **settings), tmp_path / "run")
    assert [report.quarantined for report in reports] == [None] * 6


@pytest.mark.parametrize("aggregator", ["fedfisher", "fisher_merging", {**FIPA, "block": "all"}], ids=str)
def test_honest_devices_that_train_a_network_are_not_quarantined(aggregator: Any, tmp_path: Path) -> None:
    _, _, reports = after_rounds(2, make_digits({"name": "x", "aggregator": aggregator}), tmp_path / "run")
    assert [report.quarantined for report in reports] == [None] * 6
