"""The Slurm script, run to its end on one machine: `srun` and `scontrol` are stand-ins, Ray and the run are real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import make_digits

from fibec_ray.runs.records import finished_digest

ROOT = Path(__file__).parents[2]
STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "echo localhost",
}


@pytest.mark.ray
@pytest.mark.slow
def test_the_script_starts_ray_runs_and_ends_what_it_started(tmp_path: Path) -> None:
    for name, body in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o700)
    config = tmp_path / "digits.yaml"
    config.write_text(yaml.safe_dump(make_digits(rounds=2, fleet={"kind": "ray", "num_actors": 1})))
    job = os.getpid()  # ports and Ray's folder come from it
    done = subprocess.run(
        ["bash", str(ROOT / "cluster" / "slurm" / "fibec.sbatch"), str(config)],
        capture_output=True,
        text=True,
        timeout=200,
        env={
            "HOME": str(tmp_path),
            "USER": "somebody",
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_PER_TASK": "2",
            "FIBEC_RAY_VENV": str(Path(sys.executable).parents[1]),
            "FIBEC_RAY_NAME": "first",
            "FIBEC_RAY_CACHE": str(tmp_path / "cache"),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished_digest(tmp_path / "fibec_ray_runs" / "first") is not None
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    left = subprocess.run(["pgrep", "-f", f"/tmp/ray-{job}/"], capture_output=True, text=True)
    assert left.stdout == "", "processes of its cluster"
