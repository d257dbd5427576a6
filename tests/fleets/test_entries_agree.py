"""One suite for every codec, privacy rule, sampler and schedule: both fleets agree, and runs go on where they stopped.

A new entry of a registry is in this suite without a word here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import make_digits
from rotation import in_turn
from runs.interrupted import interrupted, result

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.parts.privacy import PRIVACIES
from fibec_ray.parts.uplink import UPLINKS
from fibec_ray.preflight.check import foresee
from fibec_ray.roundlog.reader import read_devices
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import cache_dir, prepare, simulate
from fibec_ray.runs.verify import verify
from fibec_ray.samplers import SAMPLERS
from fibec_ray.schedules import SCHEDULES

pytestmark = pytest.mark.ray
AXES = {"uplink": UPLINKS, "privacy": PRIVACIES, "sampler": SAMPLERS, "schedule": SCHEDULES}
CASES = [(axis, kind) for axis, kinds in AXES.items() for kind in kinds]
TWO_ACTORS = {"kind": "ray", "placement": "pooled", "num_actors": 2}
USES_REPORTS = {("sampler", "oort")}
"""What such a run does depends on the devices' losses, so its plan does not know the cohorts."""


def settings_of(axis: str, kind: str, fleet: dict[str, Any] | None = None) -> dict[str, Any]:
    """A small network on devices of different speed, which keep residuals, generators and versions between rounds."""
    entry = (
        {"kind": kind, "noise": 0.5} if (axis, kind) in (("privacy", "device_dp"), ("privacy", "sample_dp")) else kind
    )
    method = {"name": "fedavg", **({axis: entry} if axis in ("uplink", "privacy") else {})}
    changes = {} if axis in ("uplink", "privacy") else {axis: entry}
    kept = {"every": 1, "keep": "all"}
    settings = make_digits(method, rounds=4, checkpoint=kept, system={"spread": 0.8}, **changes)
    return settings | ({} if fleet is None else {"fleet": fleet})


@pytest.mark.parametrize(("axis", "kind"), in_turn(CASES, 1, "codecs, privacy rules, samplers and schedules"))
def test_both_fleets_agree_and_a_run_goes_on_where_it_stopped(
    axis: str, kind: str, tmp_path: Path, ray_cluster: None
) -> None:
    calm = simulate(check(settings_of(axis, kind), "test"), tmp_path / "calm")
    expected = result(calm, tmp_path / "calm")
    on_ray = settings_of(axis, kind, TWO_ACTORS)
    assert result(simulate(check(on_ray, "test"), tmp_path / "ray"), tmp_path / "ray") == expected
    folder = interrupted(on_ray, tmp_path / "stopped", 3 if kind == "async" else 7)
    assert result(resume(folder, ["fleet.kind=local"]), folder) == expected
    assert verify(folder, 2).differences == []
    row = read_devices(folder).to_pylist()[-1]
    assert main(["replay", str(folder), "--round", str(row["round"] + 1), "--device", str(row["device"])]) == 0


@pytest.mark.parametrize(("axis", "kind"), in_turn(CASES, 2, "plans of codecs, privacy rules, samplers and schedules"))
def test_the_plan_counts_what_the_run_logs(axis: str, kind: str, tmp_path: Path) -> None:
    experiment = check(settings_of(axis, kind), "test")
    outlook = foresee(experiment, prepare, tmp_path / "planned", cache_dir())
    rounds = [row for row in simulate(experiment, tmp_path / "run").rows if row["round"] >= 0]
    assert outlook.traffic.total == rounds[-1]["bytes_total"]
    if (axis, kind) not in USES_REPORTS:
        assert list(outlook.work.rounds_flops) == pytest.approx([row["flops"] for row in rounds])
