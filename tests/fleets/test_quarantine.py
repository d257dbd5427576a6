"""A quarantined device keeps its state on Ray as in one process, also when a lost server has rounds repeated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import ray
from conftest import make_regression
from poisoned import poisoned

from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.ray.fleet import RayFleet
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.learning.planning import plan_round
from fibec_ray.tensors import digest

pytestmark = pytest.mark.ray
FEW = {"quorum": 0.1}
ONE_ACTOR = FleetConfig(placement="pooled", num_actors=1, lanes=1, **FEW)
METHOD = {"name": "x", "sharing": {"kind": "body"}, "curriculum": "fisher"}


def test_ray_and_local_accept_the_same_states(tmp_path: Path, ray_cluster: None) -> None:
    settings = make_regression(METHOD, cohort_size=6, fleet={"kind": "local", **FEW})
    here, there = (poisoned(settings, tmp_path / name) for name in ("local", "ray"))
    local, fleet = LocalFleet(here.spec), RayFleet(replace(there.spec, fleet=ONE_ACTOR))
    plans = [plan_round(here.spec.job, round_) for round_ in range(2)]
    try:
        local.setup()
        fleet.setup()
        for plan in plans:
            if plan.round == 1:
                fleet.save(tmp_path / "server")()
                states = fleet.states
                fleet.begin_round(plan)
                ray.kill(fleet._server.actor)  # the rounds so far are repeated, the quarantine with them
            found = [f.run_round(plan).reports for f in (local, fleet)]
            assert [[r.quarantined is None for r in reports] for reports in found] == [
                [device not in here.bad for device in plan.cohort]
            ] * 2
            assert local.states == fleet.states and {fleet.states[victim].version for victim in here.bad} == {-1}
        assert digest(local.adapter()) == digest(fleet.adapter())
        losses = [[f.evaluate(1).personal[victim].losses.tolist() for victim in here.bad] for f in (local, fleet)]
        assert losses[0] == losses[1]
    finally:
        fleet.close()
    resumed = LocalFleet(there.spec)
    resumed.restore(tmp_path / "server", states)
    resumed.run_round(plans[1])
    assert resumed.states == local.states and digest(resumed.adapter()) == digest(local.adapter())
