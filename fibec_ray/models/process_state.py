"""Restores the state of the calling process after a run: random generators, threads, environment, warnings."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def restored() -> Iterator[None]:
    """Gives back the states of random generators, torch's threads, the environment, and what libraries print."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    threads, environment = torch.get_num_threads(), dict(os.environ)
    deepspeed = logging.getLogger("DeepSpeed")
    filters = list(deepspeed.filters)
    try:
        with warnings.catch_warnings(), _as_loud_as_before():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)
        torch.set_num_threads(threads)
        deepspeed.filters[:] = filters
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


@contextmanager
def _as_loud_as_before() -> Iterator[None]:
    """transformers says what it said before, if it was imported by then."""
    if "transformers" not in sys.modules:
        yield
        return
    from transformers.utils import logging as said

    verbosity, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    try:
        yield
    finally:
        said.set_verbosity(verbosity)
        (said.enable_progress_bar if bars else said.disable_progress_bar)()
