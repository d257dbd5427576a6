"""A run on Ray that gets a signal ends with one line and its own exit code, and can be resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import make_digits

import fibec_ray


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_ends_a_run_on_ray_in_one_line(tmp_path: Path) -> None:
    """Ray's own handler would print a stack, and abort the process before its fleet is closed."""
    config = tmp_path / "exp.yaml"
    config.write_text(yaml.safe_dump(make_digits(rounds=500, evaluation={"every": 1}, fleet={"kind": "ray"})))
    with subprocess.Popen(
        [sys.executable, "-m", "fibec_ray", "run", str(config), "--out", "run"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(fibec_ray.__file__).parents[1]), "RAY_ADDRESS": ""},
    ) as run:  # fmt: skip
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("round 2:"):
                run.send_signal(signal.SIGTERM)
                break
        _, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (143, "fibec-ray: interrupted; resume with: fibec-ray resume run\n")
