"""Drivers that are killed with SIGKILL at random moments: the run that is left is the one nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import named, needs

import fibec_ray
from fibec_ray.roundlog.reader import log_digest, read_devices, read_rounds

NURSERY = Path(__file__).with_name("nursery.py")
BOTH_REMEMBER = {
    "name": "scaffold-adam",
    "objective": named("methods", "scaffold")["objective"],
    "aggregator": named("methods", "fedadam")["aggregator"],
}
"""Control variates on devices and on the server, moments on the server."""
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "fibecfed": ("fibecfed", {}),
    "scaffold and adam": (BOTH_REMEMBER, needs("scaffold")),
    "ditto": ("ditto", {}),
    "fipa": ("fipa", needs("fipa")),
    "fibecfed, rare checkpoints": ("fibecfed", {"checkpoint": {"every": 3, "keep": 1}}),
}
QUICK = {"fibecfed": 3, "scaffold and adam": 3}
"""Kills; the slow ones have more."""


@pytest.mark.parametrize(
    ("case", "kills"),
    [*QUICK.items(), *(pytest.param(case, 12, marks=pytest.mark.slow) for case in CASES)],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    case: str, kills: int, tiny_settings: Any, tmp_path: Path
) -> None:
    method, changes = CASES[case]
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(tiny_settings(method, rounds=8 if kills < 10 else 40, **changes)))
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, str(NURSERY), str(settings), str(calm), str(killed), str(kills), "7"],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PYTHONPATH": str(Path(fibec_ray.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    died_at = json.loads(done.stdout.splitlines()[-1])
    assert died_at, "every driver was faster than its killer"
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (calm, killed))
    assert one == other and one["status"] == "finished"
    assert log_digest(calm) == log_digest(killed)
    for read in (read_rounds, read_devices):
        assert read(calm).num_rows == read(killed).num_rows
    assert not list(killed.rglob("*.part"))
