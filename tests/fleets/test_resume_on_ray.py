"""A run that breaks off goes on wherever there is a fleet, the Ray fleet or this process, with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_regression, named, needs
from runs.interrupted import interrupted, result

import fibec_ray
from fibec_ray.config.load import check
from fibec_ray.runs.records import last_logged
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import simulate
from fibec_ray.runs.verify import verify

pytestmark = pytest.mark.ray
LOCAL = {"kind": "local"}
POOLED = {"kind": "ray", "placement": "pooled", "num_actors": 1}


def settings_of(method: str, tiny_settings: Any, fleet: dict[str, Any]) -> dict[str, Any]:
    """FibecFed on a small network, whose actors start in half the time; or, on a language model, control variates on
    devices and server with moments on the server."""
    if method == "fibecfed":
        made = make_regression("fibecfed", rounds=4)
    else:
        both = {"name": method, "aggregator": named("methods", "fedadam")["aggregator"]}
        both["objective"] = named("methods", "scaffold")["objective"]
        made = tiny_settings(both, rounds=4, **needs("scaffold"))
    return {**made, "fleet": fleet}


@pytest.mark.parametrize(
    ("before", "after", "method"),
    [
        pytest.param(POOLED, LOCAL, "fibecfed", id="ray to local-fibecfed"),
        pytest.param(LOCAL, POOLED, "scaffold and adam", id="local to ray-scaffold and adam"),
        pytest.param(LOCAL, POOLED, "fibecfed", id="local to ray-fibecfed", marks=pytest.mark.slow),
        pytest.param(POOLED, LOCAL, "scaffold and adam", id="ray to local-scaffold and adam", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_on_another_fleet(
    before: dict[str, Any],
    after: dict[str, Any],
    method: str,
    tiny_settings: Any,
    tmp_path: Path,
    ray_cluster: None,
) -> None:
    calm = tmp_path / "calm"
    expected = result(simulate(check(settings_of(method, tiny_settings, LOCAL), "test"), calm), calm)
    folder = interrupted(settings_of(method, tiny_settings, before), tmp_path / "run", 2 * 3 + 2)
    assert result(resume(folder, [f"fleet={after}"]), folder) == expected
    assert verify(folder).differences == []


@pytest.mark.slow
def test_a_driver_and_its_cluster_killed_with_sigkill(tiny_settings: Any, tmp_path: Path) -> None:
    """The driver's process group is; what Ray started in groups of its own ends by itself when it misses the driver."""
    settings, calm, folder = tmp_path / "settings.yaml", tmp_path / "calm", tmp_path / "run"
    one_actor = {**POOLED, "object_store_mb": 100}
    settings.write_text(yaml.safe_dump(tiny_settings("fibecfed", rounds=30, fleet=one_actor)))
    driver = subprocess.Popen(
        [sys.executable, "-m", "fibec_ray", "run", str(settings), "--out", str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path(fibec_ray.__file__).parents[1]), "RAY_ADDRESS": ""},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while last_logged(folder) < 2:
        assert driver.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert last_logged(folder) < 29
    expected = result(simulate(check(tiny_settings("fibecfed", rounds=30), "test"), calm), calm)
    assert result(resume(folder, ["fleet={kind: local}"]), folder) == expected
