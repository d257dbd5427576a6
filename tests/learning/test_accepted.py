"""A device's state advances when the server accepts its update, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_regression
from poisoned import Poisoned, poisoned

from fibec_ray.fleets.local import LocalFleet
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.store import AcceptedStates
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import digest
from fibec_ray.types import StateRef

PERSONAL_HEADS = {"name": "x", "sharing": {"kind": "body"}, "curriculum": "fisher"}


@pytest.fixture
def bad(tmp_path: Path) -> Poisoned:
    settings = make_regression(PERSONAL_HEADS, cohort_size=6, fleet={"kind": "local", "quorum": 0.1})
    return poisoned(settings, tmp_path / "run")


def test_a_quarantined_device_keeps_the_state_it_had(bad: Poisoned) -> None:
    """This holds for every place that is not finite. A device that notices it itself proposes no state at all."""
    fleet = LocalFleet(bad.spec)
    fleet.setup()
    opened = fleet.states
    for round_ in range(2):
        result = fleet.run_round(plan_round(bad.spec.job, round_))
        assert {report.device for report in result.reports if report.quarantined} == bad.bad
    assert {device: fleet.states[device] for device in bad.bad} == {device: opened[device] for device in bad.bad}
    proposed = {place: bad.spec.store.versions(device) for place, device in bad.victims.items()}
    assert proposed == {"extras": [-1, 0, 1], "delta": [-1], "personal": [-1], "memory": [-1]}
    assert {fleet.states[device].version for device in set(range(6)) - bad.bad} == {1}
    found, worker = fleet.evaluate(1), bad.spec.worker()
    for victim in bad.bad:
        expected = worker.evaluate_personal(victim, fleet._server.broadcast(2), opened)
        assert found.personal[victim].losses.tolist() == expected.losses.tolist()


def test_its_next_round_starts_from_there_also_after_a_restart(bad: Poisoned, tmp_path: Path) -> None:
    fleet, plans = LocalFleet(bad.spec), [plan_round(bad.spec.job, round_) for round_ in range(3)]
    fleet.setup()
    fleet.run_round(plans[0])
    fleet.save(tmp_path / "server")()
    states = fleet.states
    going_on = [fleet.run_round(plan).reports for plan in plans[1:]]
    again = LocalFleet(bad.spec)
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
