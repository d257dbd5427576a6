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
NUMBER = 8
"""of each"""
DAY = os.environ.get("FIBEC_RAY_SAMPLE") or str(datetime.date.today().toordinal())


def found(folder: Path, samples: dict[str, str]) -> dict[str, dict[str, Any]]:
    """For crashes and damage: how many cases there were, and those that went wrong."""
    for what, changes in CHANGES.items():
        (folder / what).mkdir()
        (folder / what / "run.yaml").write_text(yaml.safe_dump(RUN | changes))
    paths = [str(Path(fibec_ray.__file__).parents[1]), str(HERE.parent)]
    done = subprocess.run(
        [sys.executable, "-m", "runs.harness", str(folder), *(f"{what}:{text}" for what, text in samples.items())],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_sample_of_crashes_and_damages(tmp_path: Path) -> None:
    for what, walked in found(tmp_path, {what: f"{NUMBER}:{DAY}" for what in CHANGES}).items():
        assert walked["cases"] == NUMBER
        assert not walked["failures"], f"FIBEC_RAY_SAMPLE={DAY}, {what}: " + "\n".join(walked["failures"])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("what", "least"), [("crashes", 1000), ("damage", 700)])
def test_every_crash_and_every_damage(what: str, least: int, tmp_path: Path) -> None:
    walked = found(tmp_path, {what: "all"})[what]
    assert walked["cases"] >= least, "has something ceased to be counted?"
    assert not walked["failures"], "\n".join(walked["failures"])
