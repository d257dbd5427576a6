"""Keeps transformers and its tokenizers quiet."""

from __future__ import annotations

import logging

from fibec_ray.environment import set_default

OFFLINE_ENV = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment of every process that loads models; read by the libraries when they are imported."""


def quiet_libraries() -> None:
    """No progress bars and no advice from libraries in a simulator's output; set before they are imported."""
    for name, value in OFFLINE_ENV.items():
        set_default(name, value)
    # transformers and peft import deepspeed where it is installed, which then reports on its search for accelerators.
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
