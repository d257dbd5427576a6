"""Reads environment variables, where an empty one counts as unset, and silences libraries.

Shells and job files often write `NAME=` to mean "not set". CUDA_VISIBLE_DEVICES is the exception: there an empty value
means "no GPU", so it is read from os.environ as it is.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, MutableMapping

LIBRARIES = (
    "RAY_",
    "HF_",
    "HUGGINGFACE_",
    "TRANSFORMERS_",
    "XDG_",
    "WANDB_",
    "MLFLOW_",
    "AWS_",
    "GOOGLE_",
    "FIBEC_RAY_",
)
"""Variables that libraries read; some of them take an empty value for a path or a number and fail."""


def read(name: str, environment: Mapping[str, str] | None = None) -> str | None:
    """The value, or None if the variable is unset or empty."""
    return (os.environ if environment is None else environment).get(name) or None


def set_default(name: str, value: str) -> None:
    """Sets a variable that is unset or empty."""
    if not os.environ.get(name):
        os.environ[name] = value


def drop_empty(environment: MutableMapping[str, str] = os.environ) -> None:
    """Unsets the empty variables of LIBRARIES, and an empty HOME, so that libraries use their defaults."""
    for name in [name for name, value in environment.items() if not value.strip()]:
        if name.startswith(LIBRARIES) or name == "HOME":
            del environment[name]


def prepare_libraries() -> None:
    """Set what libraries read when they are imported: no usage statistics, no announcements, no empty variables."""
    drop_empty()
    set_default("RAY_USAGE_STATS_ENABLED", "0")
    set_default("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def quiet_warnings() -> None:
    """Silence warnings of transformers and peft, which their callers and not their users can act on."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")


def num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
