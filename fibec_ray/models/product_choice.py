"""Keeps the products that a trial chose, so that all runs on one machine make the same choice.

Without this, two runs of one experiment could differ in their last bits where two products are about as fast. A note in
the cache folder holds the choice. It is for one processor, version of PyTorch, number of threads and set of layers.
Delete `products-*.json` to run a new trial.
"""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

import torch

from fibec_ray.files.run_dir import write_json
from fibec_ray.models.processor import cpu_model
from fibec_ray.models.product_trial import choose, is_tiny, shapes_of
from fibec_ray.models.products import candidates, has_bfloat16
from fibec_ray.models.settings import PretrainedSettings
from fibec_ray.types import Products


def kept_choice(spec: PretrainedSettings, rows: int, threads: int, folder: Path) -> Products:
    """The choice of an earlier trial on this machine. Without one, run a trial and keep its choice.

    rows: tokens of a training batch. threads: of a process. folder: if it does not exist, nothing is kept.
    """
    able, shapes = candidates(spec.dtype), shapes_of(spec, rows)
    if len(able) == 1 or is_tiny(shapes):
        return able[0]
    key = [
        platform.machine(),
        cpu_model(),
        torch.backends.cpu.get_cpu_capability(),
        has_bfloat16(),
        torch.__version__,
        threads,
        spec.dtype,
        *(astuple(shape) for shape in shapes),
    ]
    note = folder / f"products-{hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()}.json"
    found = _read(note)
    if found in able:
        return found
    chosen = choose(spec, rows, threads)
    if folder.is_dir():
        with suppress(OSError):  # a folder that cannot be written is reported where weights are prepared
            write_json(note, {"products": chosen})
    return chosen


def _read(note: Path) -> Products | None:
    """The choice in the note; None if the note is missing or unreadable."""
    try:
        found: Products = json.loads(note.read_text())["products"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found
