"""Drivers that are killed with SIGKILL at random moments: the finished run equals an undisturbed one."""

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
    "fedavg under async": ("fedavg", {"schedule": "async", "checkpoint": {"every": 4}}),
    "fibecfed, rare checkpoints": ("fibecfed", {"checkpoint": {"every": 3, "keep": 1}}),
}


def killed(settings: Path, num_kills: int) -> list[int]:
    """Runs settings and kills their drivers, see nursery.py."""
    done = subprocess.run(
        [sys.executable, str(NURSERY), str(settings), str(num_kills), "7"],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PYTHONPATH": str(Path(fibec_ray.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(home: Path) -> None:
    calm, disturbed = home / "calm", home / "killed"
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (calm, disturbed))
    assert one.pop("started") <= other.pop("started")
    assert one == other and one["status"] == "finished"
    assert log_digest(calm) == log_digest(disturbed)
    for read in (read_rounds, read_devices):
        assert read(calm).num_rows == read(disturbed).num_rows
    assert not list(disturbed.rglob("*.part"))


@pytest.mark.parametrize(
    ("case", "num_rounds", "num_kills"),
    [
        ("fibecfed", 8, 3),
        *(pytest.param(case, 40, 12, marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    case: str, num_rounds: int, num_kills: int, tiny_settings: Any, tmp_path: Path
) -> None:
    method, changes = CASES[case]
    settings = tiny_settings(method, rounds=num_rounds, **changes)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert killed(tmp_path / "run.yaml", num_kills), "every driver was faster than its killer"
    compare(tmp_path / "run")
