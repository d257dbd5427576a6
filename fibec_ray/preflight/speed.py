"""Measures how fast this machine multiplies a model's matrices, in a quarter of a second."""

from __future__ import annotations

from typing import Literal

import torch

from fibec_ray.models.kernels import speed_up

TRIAL_S = 0.25


@torch.no_grad()
def product_rate(dtype: Literal["float32", "bfloat16"], rows: int, inside: int, out: int, threads: int) -> float:
    """flop/s of a frozen layer's product x (rows, inside) W^T (inside, out), with the kernels that training uses."""
    from torch.utils.benchmark import Timer  # here, because it imports for a sixth of a second

    layer = torch.nn.Linear(inside, out, dtype=getattr(torch, dtype)).requires_grad_(False)
    speed_up(layer, torch.device("cpu"))
    x = torch.ones(rows, inside, dtype=getattr(torch, dtype))
    trial = Timer("layer(x)", globals={"layer": layer, "x": x}, num_threads=threads)
    return 2.0 * rows * inside * out / min(trial.blocked_autorange(min_run_time=TRIAL_S).times)
