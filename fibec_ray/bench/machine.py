"""Describes the machine of a measurement in one line."""

from __future__ import annotations

import platform
from importlib.metadata import version

import psutil

from fibec_ray.models.processor import cpu_model

LIBRARIES = ("torch", "ray", "transformers", "peft")


def machine() -> str:
    """CPU model, cores, memory, versions."""
    memory = psutil.virtual_memory().total / 2**30
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]
    return f"{cpu_model()}, {psutil.cpu_count()} cores, {memory:.0f} GiB; {', '.join(versions)}"


def busy_with_others() -> float:
    """Share of all cores in use over one second; call it before the benchmark starts."""
    return psutil.cpu_percent(interval=1.0) / 100
