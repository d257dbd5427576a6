"""A quarantined device keeps its state on Ray as in one process, also when a lost server has rounds repeated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import ray
from conftest import make_regression
from poisoned import poisoned_worker_spec

from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.ray.fleet import RayFleet
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.learning.planning import plan_round
from fibec_ray.tensors import digest

pytestmark = pytest.mark.ray
ONE_ACTOR = FleetConfig(placement="pooled", num_actors=1, lanes=1)
METHOD = {"name": "x", "sharing": {"kind": "body"}, "curriculum": "fisher"}


def test_ray_and_local_accept_the_same_states(tmp_path: Path, ray_cluster: None) -> None:
    settings = make_regression(METHOD, cohort_size=6)
    (here, victim), (there, _) = (poisoned_worker_spec(settings, tmp_path / name) for name in ("local", "ray"))
    local, fleet = LocalFleet(here), RayFleet(replace(there, fleet=ONE_ACTOR))
    try:
        local.setup()
        fleet.setup()
        for round_ in range(2):
            plan = plan_round(here.job, round_)
            found = [f.run_round(plan).reports for f in (local, fleet)]
            assert [[r.quarantined is None for r in reports] for reports in found] == [
                [device != victim for device in plan.cohort]
            ] * 2
            assert local.states == fleet.states and fleet.states[victim].version == -1
            if round_ == 0:
                ray.kill(fleet._server.actor)  # the rounds so far are repeated, the quarantine with them
        assert digest(local.adapter()) == digest(fleet.adapter())
        shares = [f.evaluate(1).personal[victim].losses.tolist() for f in (local, fleet)]
        assert shares[0] == shares[1]
    finally:
        fleet.close()
