"""Measures the products of frozen layers and attention on this machine: `python -m fibec_ray.bench.kernels`.

Times products and attention of MiniLM's sizes in one thread, by the thread's own CPU time; the shortest of several runs
counts. Loads no model. `--isa avx2` restricts the processor's instructions.
"""

from __future__ import annotations

import argparse
import time
import timeit
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.bench import instruction_set
from fibec_ray.bench.machine import machine
from fibec_ray.models.product_trial import Shape, Trial
from fibec_ray.models.products import NAMES, candidates
from fibec_ray.types import Products

ROWS = 256
"""8 samples of 32 tokens"""
WIDTHS = ((384, 384), (384, 1536), (1536, 384))
"""(in, out) of MiniLM's frozen layers"""
DTYPES = ("float32", "bfloat16")
CALLS = 20


def seconds(work: Callable[[], object], calls: int = 40, repeats: int = 5) -> float:
    """Least time of one call over several repeats, of this thread alone."""
    work()
    return min(timeit.repeat(work, number=calls, repeat=repeats, timer=time.thread_time)) / calls


def rate(products: Products, dtype: str, inputs: int, outputs: int) -> float:
    """GFLOP/s of a frozen layer's forward and backward product."""
    shape = Shape(ROWS, inputs, outputs)
    trial = Trial([shape], getattr(torch, dtype))
    least = [min(trial.product(products, shape, backward) for _ in range(CALLS)) for backward in (False, True)]
    return 2 * shape.flops / sum(least) / 1e9


def rates(dtype: str, inputs: int, outputs: int) -> list[str]:
    """A cell for each of NAMES; empty if this dtype or this machine does not have these products."""
    able = {"torch", *candidates(dtype)} - (
        {"onednn"} if dtype == "bfloat16" else set()
    )  # the same as torch in bfloat16
    return [f"{rate(name, dtype, inputs, outputs):.0f}" if name in able else "" for name in NAMES]


def attention(dtype: torch.dtype, inside: torch.dtype) -> float:
    """Microseconds of attention with 12 heads over 8 samples, forward and backward. inside: the dtype to compute in."""
    q, k, v = (torch.randn(8, 12, 32, 32, dtype=dtype, requires_grad=True) for _ in range(3))

    def work() -> Tensor:
        return F.scaled_dot_product_attention(q.to(inside), k.to(inside), v.to(inside)).to(dtype)

    e = torch.randn_like(q)
    return 1e6 * seconds(lambda: torch.autograd.grad(work(), (q, k, v), e))


def measure() -> None:
    """Print the tables, for the instructions of this process."""
    torch.set_num_threads(1)
    print(f"{machine()}; {instruction_set.here()}; one thread, {ROWS} rows\n")
    print(f"| frozen layer, forward and backward, GFLOP/s | {' | '.join(NAMES)} |\n|---{'|---' * len(NAMES)}|")
    for dtype in DTYPES:
        for inputs, outputs in WIDTHS:
            print(f"| {dtype}, {inputs} x {outputs} | {' | '.join(rates(dtype, inputs, outputs))} |")
    plain, fast = attention(torch.bfloat16, torch.bfloat16), attention(torch.bfloat16, torch.float32)
    print("\n| attention of a bfloat16 base, microseconds | in bfloat16 | in float32 (ours) |\n|---|---|---|")
    print(f"| 8 x 32 tokens, 12 heads, forward and backward | {plain:.0f} | {fast:.0f} |")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m fibec_ray.bench.kernels", description=__doc__)
    instruction_set.add_option(parser)
    isa = parser.parse_args().isa
    if isa is None:
        measure()
    else:
        print(instruction_set.run("fibec_ray.bench.kernels", isa), end="")


if __name__ == "__main__":
    main()
