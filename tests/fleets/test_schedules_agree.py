"""Under every schedule the in-process fleet and the Ray fleet give bitwise-equal models and logs."""

from __future__ import annotations

from pathlib import Path

import pytest
from rotation import in_turn
from runs.interrupted import interrupted, result
from schedules.kinds import SCHEDULED, settings_of

from fibec_ray.config.load import check
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import simulate

pytestmark = pytest.mark.ray
FLEETS = ({"kind": "local"}, {"kind": "ray", "placement": "pooled", "num_actors": 2})


@pytest.mark.parametrize("kind", in_turn(SCHEDULED, 1, "schedules on both fleets"))
def test_both_fleets_agree_bit_for_bit(kind: str, tmp_path: Path, ray_cluster: None) -> None:
    """With devices at work over several rounds, whose training begins ahead on Ray, and evaluations in between."""
    found = []
    for fleet in FLEETS:
        settings = settings_of(kind, fleet=fleet, evaluation={"every": 2})
        run = simulate(check(settings, "test"), tmp_path / str(fleet["kind"]))
        found.append((run.adapter_digest, log_digest(run.folder)))
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCHEDULED)
def test_a_run_whose_devices_train_ahead_goes_on_in_one_process(kind: str, tmp_path: Path, ray_cluster: None) -> None:
    """A checkpoint every other round, so that states of devices at work are older than it."""
    changes = {"checkpoint": {"every": 2, "keep": 1}}
    calm = simulate(check(settings_of(kind, **changes), "test"), tmp_path / "calm")
    folder = interrupted(settings_of(kind, **changes, fleet=FLEETS[1]), tmp_path / "run", 5 if kind == "async" else 14)
    assert result(resume(folder, ["fleet.kind=local"]), folder) == result(calm, tmp_path / "calm")
