"""Describes the machine of a measurement in one line."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import psutil

LIBRARIES = ("torch", "ray", "transformers", "peft")


def machine() -> str:
    """CPU model, cores, memory, versions."""
    memory = psutil.virtual_memory().total / 2**30
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]
    return f"{_cpu_model()}, {psutil.cpu_count()} cores, {memory:.0f} GiB; {', '.join(versions)}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def busy_with_others() -> float:
    """Share of all cores in use over one second; call it before the benchmark starts."""
    return psutil.cpu_percent(interval=1.0) / 100
