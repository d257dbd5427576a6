"""Updates that must not be averaged: the server leaves them out, and says which and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny

from fibec_ray.config.load import check
from fibec_ray.errors import DeviceError, FleetError
from fibec_ray.fleets.site import Site
from fibec_ray.fleets.tolerance import Tolerance
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.server import Server
from fibec_ray.roundlog.reader import read_devices, read_rounds
from fibec_ray.simulation import Nobody, cache_dir, prepare, simulate
from fibec_ray.types import ClientUpdate, RoundPlan

Hurt = Callable[[ClientUpdate, str], ClientUpdate]
"""(a good update, a name of one of its tensors) -> a bad one"""


def filled(update: ClientUpdate, name: str, value: float) -> ClientUpdate:
    tensor = update.delta[name].clone()
    tensor.view(-1)[-1] = value
    return replace(update, delta=update.delta | {name: tensor})


def reshaped(update: ClientUpdate, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> ClientUpdate:
    return replace(update, delta=update.delta | {name: change(update.delta[name])})


HURT: dict[str, tuple[Hurt, str]] = {
    "nan": (lambda u, n: filled(u, n, float("nan")), "not finite"),
    "inf": (lambda u, n: filled(u, n, float("inf")), "not finite"),
    "minus inf": (lambda u, n: filled(u, n, float("-inf")), "not finite"),
    "evidence that is not finite": (
        lambda u, n: replace(u, evidence={"x": torch.tensor([1, torch.inf])}),
        "not finite",
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
    "fewer than no samples": (lambda u, n: replace(u, num_samples=-5), "counts -5 samples"),
    "its own word": (lambda u, n: replace(u, delta={}, fault="the battery is empty"), "the battery is empty"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable[[], Server], RoundPlan, list[ClientUpdate]]:
    """How to have a server before round 0, and what its cohort sends."""
    folder = tmp_path_factory.mktemp("faults")
    experiment = check(make_tiny(), "test")
    prepared = prepare(experiment, folder)
    site = Site(experiment.job(prepared.num_classes, prepared.label_words), folder, cache_dir(), 1)
    worker, plan = site.worker(), plan_round(site.job, 3, 0)

    def server() -> Server:
        made = Server(site.job, worker.initial, worker.layout)
        made.open([])
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
    pytest.raises(DeviceError, Tolerance(quarantines=False).check, trained[1], (), bad).match(
        f"device {second.device}, round 0, train: .*{why}.*fleet.on_bad_update=quarantine"
    )


def test_a_round_needs_a_quorum(trained: Any) -> None:
    plan = replace(trained[1], cohort=(7, 3, 9, 1))
    Tolerance(0.5).check(plan, (3,), {9: "x"})
    Tolerance(0.25).check(plan, (3, 1), {9: "x"})
    with pytest.raises(FleetError, match="round 0: 1 of 4 devices sent a sound update, fleet.quorum asks for 2"):
        Tolerance(0.5).check(plan, (3, 1, 9), {})
    with pytest.raises(DeviceError, match="device 7, round 0, train: bad .1 of 4 devices"):
        Tolerance(0.5).check(plan, (), dict.fromkeys((9, 3, 7), "bad"))


class Listener(Nobody):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def diverging(tiny_settings: Any, **fleet: Any) -> Any:
    """Devices that take a second step at such a rate leave what floats can hold."""
    local = {"learning_rate": 1e30, "batch_size": 8}
    fleet = {"kind": "local", **fleet}
    return check(tiny_settings(rounds=1, cohort_size=6, local=local, fleet=fleet), "test")


def test_devices_that_diverge_are_quarantined(tiny_settings: Any, tmp_path: Path) -> None:
    listener = Listener()
    simulate(diverging(tiny_settings, quorum=0.1), tmp_path / "run", listener)
    rows = [row for row in read_devices(tmp_path / "run").to_pylist() if row["quarantined"]]
    last = read_rounds(tmp_path / "run").to_pylist()[-1]
    assert 0 < len(rows) == last["num_quarantined"] < last["num_devices"] == 6
    assert last["num_lost"] == 0 and last["num_devices_trained"] == 6 - len(rows)
    assert all(row["bytes_up"] == 0 and "lower local.learning_rate" in row["quarantined"] for row in rows)
    told = sorted(note.split(":")[1] for note in listener.notes)
    assert told == [f" device {row['device']} is quarantined" for row in rows]


def test_if_too_many_diverge_the_run_ends_with_the_reason(tiny_settings: Any, tmp_path: Path) -> None:
    for fleet in ({"quorum": 1.0}, {"on_bad_update": "error"}):
        with pytest.raises(DeviceError, match="round 0, train: the update is not finite; lower local.learning_rate"):
            simulate(diverging(tiny_settings, **fleet), tmp_path / str(len(fleet) + len(str(fleet))))
