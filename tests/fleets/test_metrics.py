"""What Prometheus would read from Ray while a run goes on."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import make_digits

from fibec_ray.cli.prometheus import COUNTERS, GAUGES, RunMetrics
from fibec_ray.config.load import check
from fibec_ray.runs.simulation import simulate

WAIT_S = 30
"""Ray exports every few seconds."""


@pytest.mark.ray
def test_a_run_s_metrics_reach_ray_s_export_port(tmp_path: Path, ray_cluster: None) -> None:
    settings = make_digits(rounds=3, fleet={"kind": "ray", "placement": "pooled", "num_actors": 1})
    run = simulate(check(settings, "test"), tmp_path / "run", RunMetrics("metered"))
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found = exported(url)
    last = run.rows[-1]
    assert found["round"] == 2 and found["lanes"] == 1 and found["actors"] == 1
    assert found["rounds_total"] == 4, "three and the initialisation phase"
    assert found["bytes_up_total"] == sum(row["bytes_up"] for row in run.rows)
    assert found["global_accuracy"] == pytest.approx(last["global_accuracy"])
    assert "lost_devices_total" not in found, "a counter begins when there is something to count"
    assert found.keys() <= GAUGES.keys() | {f"{name}_total" for name in COUNTERS}, sorted(found)


def exported(url: str) -> dict[str, float]:
    """{name: value} of the series tagged with the run's name, once the last round is among them."""
    deadline = time.monotonic() + WAIT_S
    found: dict[str, Any] = {}
    while found.get("round") != 2 and time.monotonic() < deadline:
        time.sleep(0.5)
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        lines = re.findall(r'^ray_fibec_(\w+)\{[^}]*run="metered"[^}]*\} (\S+)$', text, re.MULTILINE)
        found = {name: float(value) for name, value in lines}
    return found
