"""Measures the gain of models/kernels.py and models/attention.py on this machine: `python -m fibec_ray.bench.kernels`.

One thread; products and attention of MiniLM's sizes, least time of several runs. No model is loaded.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray.bench.machine import machine
from fibec_ray.models.kernels import speed_up

ROWS = 256
"""8 samples of 32 tokens"""
WIDTHS = ((384, 384), (384, 1536), (1536, 384))
"""(in, out) of MiniLM's frozen layers"""


def seconds(work: Callable[[], object], calls: int = 40, repeats: int = 5) -> float:
    """Least time of one call over several repeats."""
    work()
    return min(timeit.repeat(work, number=calls, repeat=repeats)) / calls


def frozen(inputs: int, outputs: int) -> tuple[float, float]:
    """GFLOP/s of a frozen layer's forward and backward pass: PyTorch's Linear, and ours."""
    plain, fast = (nn.Linear(inputs, outputs).requires_grad_(False) for _ in range(2))
    speed_up(fast, torch.device("cpu"))
    x, e = torch.randn(ROWS, inputs, requires_grad=True), torch.randn(ROWS, outputs)
    flops = 4.0 * ROWS * inputs * outputs
    times = [seconds(lambda layer=layer: torch.autograd.grad(layer(x), x, e)) for layer in (plain, fast)]  # type: ignore[misc]
    return flops / times[0] / 1e9, flops / times[1] / 1e9


def attention(dtype: torch.dtype, inside: torch.dtype) -> float:
    """Microseconds of attention with 12 heads over 8 samples, forward and backward. inside: the dtype to compute in."""
    q, k, v = (torch.randn(8, 12, 32, 32, dtype=dtype, requires_grad=True) for _ in range(3))

    def work() -> Tensor:
        return F.scaled_dot_product_attention(q.to(inside), k.to(inside), v.to(inside)).to(dtype)

    e = torch.randn_like(q)
    return 1e6 * seconds(lambda: torch.autograd.grad(work(), (q, k, v), e))


def main() -> None:
    """Run the benchmark and print its table."""
    torch.set_num_threads(1)
    print(f"{machine()}; one thread, {ROWS} rows\n\n| forward and backward | PyTorch | fibec_ray |\n|---|---|---|")
    for inputs, outputs in WIDTHS:
        plain, fast = frozen(inputs, outputs)
        print(f"| frozen {inputs} x {outputs}, float32, GFLOP/s | {plain:.0f} | {fast:.0f} |")
    plain, fast = attention(torch.bfloat16, torch.bfloat16), attention(torch.bfloat16, torch.float32)
    print(f"| attention, bfloat16, microseconds | {plain:.0f} | {fast:.0f} |")


if __name__ == "__main__":
    main()
