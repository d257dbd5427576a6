"""Every file operation of a run can fail in every way, and every file can be damaged: the right bits, or one line.

All cases are slow ones; a sample of them, another one each day, is not. `FIBEC_RAY_SAMPLE=N` takes that of day N again.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import fibec_ray

HERE = Path(__file__).parent
RUN: dict[str, Any] = {
    "name": "tiny",
    "num_devices": 3,
    "cohort_size": 2,
    "task": "digits",
    "method": "scaffold",
    "backbone": {"kind": "mlp", "hidden": [4]},
    "data": {"max_train": 40, "max_test": 12},
    "partition": "iid",
    "local": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 16, "epochs": 1, "weight_decay": 0},
    "fleet": {"kind": "local"},
}
"""Devices, server and objective all have a state."""
CHANGES: dict[str, dict[str, Any]] = {
    "crashes": {"rounds": 2, "evaluation": {"every": 2}, "checkpoint": {"keep": 1}},
    "damage": {"rounds": 5, "evaluation": {"every": 5}, "checkpoint": {"keep": 2}},
}
DAY = os.environ.get("FIBEC_RAY_SAMPLE") or str(datetime.date.today().toordinal())


def failures(script: str, sample: str, folder: Path) -> tuple[int, list[str]]:
    """How many cases there were, and those that went wrong."""
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN | CHANGES[script]))
    paths = [str(Path(fibec_ray.__file__).parents[1]), str(HERE.parent)]
    done = subprocess.run(
        [sys.executable, "-m", f"reruns.{script}", str(folder), sample],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return found["cases"], found["failures"]


@pytest.mark.parametrize(("script", "number"), [("crashes", 8), ("damage", 8)])
def test_a_sample_of_crashes_and_damages(script: str, number: int, tmp_path: Path) -> None:
    num_cases, found = failures(script, f"{number}:{DAY}", tmp_path)
    assert num_cases == number
    assert not found, f"FIBEC_RAY_SAMPLE={DAY}: " + "\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("script", "least"), [("crashes", 1000), ("damage", 700)])
def test_every_crash_and_every_damage(script: str, least: int, tmp_path: Path) -> None:
    num_cases, found = failures(script, "all", tmp_path)
    assert num_cases >= least, f"only {num_cases} cases: has something ceased to be counted?"
    assert not found, "\n".join(found)
