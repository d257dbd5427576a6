"""Scripts beside this file that run an experiment in a process of its own: one has one cluster, and one heap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import fibec_ray


def in_a_process_of_its_own(script: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a script with the settings, the run directory and the file to write; return what it wrote."""
    given = folder / "settings.yaml"
    given.write_text(yaml.safe_dump(settings))
    program = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, str(program), str(given), str(folder / "run"), str(folder / "found.json")],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PYTHONPATH": str(Path(fibec_ray.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found
