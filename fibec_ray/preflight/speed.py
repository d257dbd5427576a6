"""Measures how fast this machine multiplies a model's matrices, in a fraction of a second."""

from __future__ import annotations

import time

import torch

from fibec_ray.models.product_trial import Shape, Trial, using_threads
from fibec_ray.types import Products

TRIAL_S = 0.25
LEAST_CALLS = 3


def product_rate(products: Products, dtype: str, rows: int, inside: int, out: int, threads: int) -> float:
    """flop/s of a frozen layer's product x (rows, inside) W^T (inside, out), with the products that training uses."""
    shape = Shape(rows, inside, out)
    trial, times, began = Trial([shape], getattr(torch, dtype)), list[float](), time.perf_counter()
    with using_threads(threads):
        while len(times) < LEAST_CALLS or time.perf_counter() - began < TRIAL_S:
            times.append(trial.product(products, shape))
    return shape.flops / min(times)
