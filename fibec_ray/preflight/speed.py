"""Measures how fast this machine multiplies a model's matrices, in a quarter of a second."""

from __future__ import annotations

import time
from typing import Literal

import torch

from fibec_ray.models.kernels import speed_up

TRIAL_S = 0.25


def product_rate(dtype: Literal["float32", "bfloat16"], rows: int, inside: int, out: int, threads: int) -> float:
    """flop/s of a frozen layer's product x (rows, inside) W^T (inside, out), by the kernels that training uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _rate(getattr(torch, dtype), rows, inside, out)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def _rate(dtype: torch.dtype, rows: int, inside: int, out: int) -> float:
    layer = torch.nn.Linear(inside, out, dtype=dtype).requires_grad_(False)
    speed_up(layer, torch.device("cpu"))
    x = torch.ones(rows, inside, dtype=dtype)
    seconds: list[float] = []
    layer(x)
    started = time.perf_counter()
    while not seconds or time.perf_counter() - started < TRIAL_S:
        begun = time.perf_counter()
        layer(x)
        seconds.append(time.perf_counter() - begun)
    return 2.0 * rows * inside * out / min(seconds)
