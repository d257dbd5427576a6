"""Devices that differ, drop out and are drawn in other ways: the same bits in one process and on two actors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import make_regression
from runs.interrupted import interrupted, result

from fibec_ray.config.load import check
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import simulate

pytestmark = pytest.mark.ray
RAY = {"kind": "ray", "placement": "pooled", "num_actors": 2}
SYSTEM = {"kind": "lognormal", "jitter": 0.2, "dropout": 0.3}


@pytest.mark.parametrize(
    ("sampler", "more"),
    [
        ("poisson", {}),
        pytest.param("oort", {"partial_work": True}, marks=pytest.mark.slow),
        pytest.param("weighted", {}, marks=pytest.mark.slow),
    ],
)
def test_local_and_ray_agree(sampler: str, more: dict[str, Any], tmp_path: Path, ray_cluster: None) -> None:
    """On Ray the run stops in the middle, and goes on in this process."""
    settings = make_regression("fibecfed", rounds=5, cohort_size=2, sampler=sampler, system=SYSTEM | more)
    local = simulate(check(settings, "test"), tmp_path / "local")
    expected = result(local, tmp_path / "local")
    ray = simulate(check(settings | {"fleet": RAY}, "test"), tmp_path / "ray")
    assert result(ray, tmp_path / "ray") == expected
    folder = interrupted(settings | {"fleet": RAY}, tmp_path / "stopped", 3)
    assert result(resume(folder, ["fleet={kind: local}"]), folder) == expected
    rows = [row for row in read_rounds(tmp_path / "local").to_pylist() if row["round"] >= 0]
    assert (sum(row["num_dropped"] for row in rows) > 0) == (not more)
