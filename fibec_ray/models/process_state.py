"""Silences libraries, and restores a process's state after a run: generators, threads, environment."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fibec_ray.environment import set_default

OFFLINE_ENV = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment of every process that loads models; libraries read it when they are imported."""


def quiet_libraries() -> None:
    """Turn off progress bars and advice of libraries; call it before they are imported."""
    for name, value in OFFLINE_ENV.items():
        set_default(name, value)
    # transformers and peft import an installed deepspeed, which logs its search for accelerators.
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def allow_tf32(allowed: bool) -> None:
    """Set whether this process multiplies float32 matrices on a GPU in TF32. PyTorch's default differs by operation."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _tf32() -> tuple[bool, bool] | None:
    """The settings for matrix products and convolutions; None if they were set through PyTorch's newer interface."""
    try:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the older interface cannot read what the newer one set
        return None


@contextmanager
def restored() -> Iterator[None]:
    """Restore random generators, torch's threads and TF32, the environment, and the libraries' logging afterwards."""
    states = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    threads, environment = torch.get_num_threads(), dict(os.environ)
    tf32 = _tf32()
    deepspeed = logging.getLogger("DeepSpeed")
    filters = list(deepspeed.filters)
    said: Any = sys.modules.get("transformers.utils.logging")  # None: transformers has not been imported yet
    loud = (said.get_verbosity(), said.is_progress_bar_enabled()) if said else (0, True)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(gpus):
            yield
    finally:
        if said:
            said.set_verbosity(loud[0])
            (said.enable_progress_bar if loud[1] else said.disable_progress_bar)()
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads(threads)
        if tf32 is not None:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        deepspeed.filters[:] = filters
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
