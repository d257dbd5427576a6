"""A device's state advances when the server accepts its update, and not before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from poisoned import poisoned_worker_spec

from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.store import AcceptedStates
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import digest
from fibec_ray.types import StateRef

PERSONAL_HEADS = {"name": "x", "sharing": {"kind": "body"}, "curriculum": "fisher"}


@pytest.fixture
def poisoned(tiny_settings: Any, tmp_path: Path) -> tuple[WorkerSpec, int]:
    """A spec whose smallest device is quarantined in every round, and that device."""
    settings = tiny_settings(PERSONAL_HEADS, cohort_size=6, data={"synthetic": {"num_train": 75}})
    return poisoned_worker_spec(settings, tmp_path / "run")


def test_a_quarantined_device_keeps_the_state_it_had(poisoned: tuple[WorkerSpec, int]) -> None:
    worker_spec, victim = poisoned
    fleet = LocalFleet(worker_spec)
    fleet.setup()
    opened = fleet.states
    for round_ in range(2):
        result = fleet.run_round(plan_round(worker_spec.job, round_))
        assert [report.device for report in result.reports if report.quarantined] == [victim]
    assert fleet.states[victim] == opened[victim] and worker_spec.store.versions(victim) == [-1, 0, 1]
    others = set(range(6)) - {victim}
    assert {fleet.states[device].version for device in others} == {1}
    personal = fleet.evaluate(1).personal[victim]
    worker = worker_spec.worker()
    expected = worker.evaluate_personal(victim, fleet._server.broadcast(2), opened)
    assert personal.losses.tolist() == expected.losses.tolist()


def test_its_next_round_starts_from_there_also_after_a_restart(
    poisoned: tuple[WorkerSpec, int], tmp_path: Path
) -> None:
    worker_spec, victim = poisoned
    fleet, plans = LocalFleet(worker_spec), [plan_round(worker_spec.job, round_) for round_ in range(3)]
    fleet.setup()
    fleet.run_round(plans[0])
    fleet.save(tmp_path / "server")()
    states = fleet.states
    going_on = [fleet.run_round(plan).reports for plan in plans[1:]]
    again = LocalFleet(worker_spec)
    again.restore(tmp_path / "server", states)
    resumed = [again.run_round(plan).reports for plan in plans[1:]]
    assert [[r.update_digest for r in reports] for reports in resumed] == [
        [r.update_digest for r in reports] for reports in going_on
    ]
    assert again.states == fleet.states and digest(again.adapter()) == digest(fleet.adapter())


def report(round_: int, state_digest: str, quarantined: str | None = None) -> DeviceReport:
    return DeviceReport(round_, 4, 10, state_digest=state_digest, quarantined=quarantined)


def test_only_accepted_reports_advance_a_device() -> None:
    accepted = AcceptedStates()
    accepted.accept([report(-1, "a")])
    before = accepted.all
    accepted.accept([report(0, "b", quarantined="not finite")])
    assert accepted.all == before == {4: StateRef(-1, "a")} and accepted.of([4, 5]) == before
    accepted.accept([report(1, "c")])
    assert accepted.all == {4: StateRef(1, "c")} and before == {4: StateRef(-1, "a")}
    accepted.accept([report(2, "")])
    assert accepted.all == {}
    accepted.reset(before)
    assert accepted.all == before
