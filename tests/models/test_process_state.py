"""A run leaves the process that called it unchanged."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_digits, make_tiny
from transformers.utils import logging as said

from fibec_ray.config.load import check
from fibec_ray.errors import FibecError
from fibec_ray.models.process_state import restored
from fibec_ray.runs.simulation import simulate


def state() -> dict[str, Any]:
    return {
        "random": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "verbosity": (said.get_verbosity(), said.is_progress_bar_enabled()),
        "loggers": list(logging.getLogger("DeepSpeed").filters),
    }


@pytest.fixture
def loud() -> Iterator[None]:
    """As in a notebook: transformers may talk, nothing is set for its tokenizers, and torch has several threads."""
    before = said.get_verbosity(), torch.get_num_threads(), os.environ.pop("TOKENIZERS_PARALLELISM", None)
    said.set_verbosity_info()
    said.enable_progress_bar()
    torch.set_num_threads(2)
    yield
    said.set_verbosity(before[0])
    said.disable_progress_bar()
    torch.set_num_threads(before[1])
    if before[2] is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = before[2]


@pytest.mark.parametrize("make", [make_tiny, make_digits], ids=["text", "digits"])
def test_a_run_changes_nothing_of_its_process(make: Any, loud: None, tmp_path: Path) -> None:
    before = state()
    simulate(check(make(rounds=1), "test"), tmp_path / "run")
    assert state() == before


def test_nor_does_one_that_is_refused(loud: None, tmp_path: Path) -> None:
    before = state()
    settings = make_tiny(backbone={"init": "pretrained", "config": None, "name": "none"})
    with pytest.raises(FibecError):
        simulate(check(settings, "test"), tmp_path / "run")
    assert state() == before


def test_whatever_happens_inside() -> None:
    before = state()
    with pytest.raises(ZeroDivisionError), restored():
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        torch.set_num_threads(3)
        os.environ["NEW"], os.environ["PATH"] = "1", ""
        warnings.simplefilter("ignore")
        logging.getLogger("DeepSpeed").addFilter(lambda record: False)
        _ = 1 / 0
    assert state() == before
