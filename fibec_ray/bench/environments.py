"""A virtual environment for each rival, made once and kept in the cache folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from fibec_ray.runs.simulation import cache_dir

RIVALS = {"flower": "flwr[simulation]>=1.41,<1.43", "pfl": "pfl[pytorch]==0.6.0"}
"""Each rival's own package: the newest Flower below 1.43 whose requirements can be installed."""
SHARED = ("torch", "transformers", "peft", "numpy")
"""Installed in the same versions for all contenders: these libraries do the arithmetic."""


class InstallError(Exception):
    """An environment cannot be made; the message is pip's."""


def is_installed(rival: str) -> bool:
    """True if a rival's environment exists and has the right versions."""
    ready = _folder(rival) / ".ready"
    return ready.exists() and ready.read_text() == "\n".join(requirements(rival))


def python_of(rival: str) -> Path:
    """The interpreter of a rival's environment. Makes the environment if it is missing or has other versions."""
    folder, wanted = _folder(rival), "\n".join(requirements(rival))
    ready = folder / ".ready"
    if not is_installed(rival):
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        quiet = ["--quiet", "--disable-pip-version-check"]
        _run([str(folder / "bin" / "python"), "-m", "pip", "install", *quiet, *requirements(rival)])
        ready.write_text(wanted)
    return folder / "bin" / "python"


def requirements(rival: str) -> list[str]:
    """The packages that a rival's environment needs, with versions."""
    return [*(f"{name}=={version(name).split('+')[0]}" for name in SHARED), RIVALS[rival]]


def _folder(rival: str) -> Path:
    return cache_dir() / "bench" / rival


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise InstallError((errors or [done.stderr.strip() or f"exit code {done.returncode}"])[-1])
