"""Times streamed weights (`backbone.backend: stream`): how much of the copies overlaps with the products.

    python -m fibec_ray.bench.stream                             LLaMA-7B's feed-forward products, 8 blocks
    python -m fibec_ray.bench.stream --hidden 64 --inner 128 --tokens 8      a small trial

Each row is a forward and a backward pass through frozen products whose weights are in host memory: the copies alone,
the products alone with all weights in place, and both together, as a run does them. The overlap is the share of
the shorter one that the longer one hides: 100 % if both together take as long as the longer one alone. A CPU computes
where the weights are, so it copies nothing.
"""

from __future__ import annotations

import argparse
import timeit
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import nn

from fibec_ray.models.prefetch import Prefetcher, prefetcher
from fibec_ray.models.stream import stream

WARM_UP = 2
"""passes that are not timed: the first one learns the order of the weights"""


class Trial:
    """Frozen products, with the weights in host memory. inner: outputs of every other product."""

    def __init__(self, hidden: int, inner: int, blocks: int, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype, self.hidden = device, dtype, hidden
        generator = torch.Generator().manual_seed(0)
        sizes = [(inner, hidden), (hidden, inner)] * blocks
        self.weights = [0.02 * torch.randn(size, generator=generator, dtype=dtype) for size in sizes]

    @property
    def num_bytes(self) -> int:
        """Bytes that a forward and a backward pass copy."""
        return 2 * sum(weight.nbytes for weight in self.weights)

    def flops(self, tokens: int) -> int:
        """Operations of a forward and a backward pass."""
        return 4 * tokens * sum(weight.numel() for weight in self.weights)

    def copies(self) -> Callable[[], None]:
        """A pass without products. Each copy is used by a negligible operation."""
        visits: Prefetcher = prefetcher(self.device)

        def run() -> None:
            for weight in (*self.weights, *reversed(self.weights)):
                visits.fetch(weight)[0, 0].add(1)
                visits.ahead()

        return run

    def products(self, tokens: int, streamed: bool) -> Callable[[], None]:
        """A pass; streamed: with copies."""
        layers = [nn.Linear(w.shape[1], w.shape[0], bias=False, device="meta") for w in self.weights]
        for layer, weight in zip(layers, self.weights, strict=True):
            layer.weight = nn.Parameter(weight if streamed else weight.to(self.device), requires_grad=False)
        module = nn.Sequential(*layers)
        if streamed:
            stream(module, self.device)
        x = torch.randn(tokens, self.hidden, device=self.device, dtype=self.dtype, requires_grad=True)

        def run() -> None:
            torch.autograd.grad(module(x), x, torch.ones_like(x))

        return run

    def seconds(self, run: Callable[[], None], repeats: int) -> float:
        """Median seconds of a pass."""

        def timed() -> None:
            run()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return median(timeit.repeat(timed, number=1, repeat=repeats + WARM_UP)[WARM_UP:])


def overlap(copies: float, products: float, both: float) -> float | None:
    """Share of the shorter one that the longer one hides, 0 to 1; None if one of them takes no time."""
    shorter = min(copies, products)
    return None if shorter < 1e-4 * both else max(0.0, min(1.0, (copies + products - both) / shorter))


def row(trial: Trial, tokens: int, repeats: int) -> str:
    """One line of the table."""
    copies = trial.seconds(trial.copies(), repeats)
    products = trial.seconds(trial.products(tokens, streamed=False), repeats)
    both = trial.seconds(trial.products(tokens, streamed=True), repeats)
    copying = trial.device.type == "cuda"
    share = overlap(copies, products, both) if copying else None
    cells = [
        str(tokens),
        f"{1e3 * copies:.1f}" if copying else "–",
        f"{trial.num_bytes / copies / 1e9:.1f}" if copying else "–",
        f"{1e3 * products:.1f}",
        f"{trial.flops(tokens) / products / 1e12:.2f}",
        f"{1e3 * both:.1f}",
        "–" if share is None else f"{100 * share:.0f} %",
    ]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m fibec_ray.bench.stream", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 2048, 8192], help="of all samples of a batch")
    for name, value in (("hidden", 4096), ("inner", 11008), ("blocks", 8), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, help="of torch, which copy into page-locked memory")
    a = parser.parse_args(argv)
    if a.threads:
        torch.set_num_threads(a.threads)
    device = torch.device(a.device)
    trial = Trial(a.hidden, a.inner, a.blocks, device, getattr(torch, a.dtype))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, {a.blocks} x {a.hidden} x {a.inner}")
    print("| tokens | copies, ms | GB/s | products, ms | TFLOP/s | both, ms | overlap |")
    print("|---|---|---|---|---|---|---|")
    for tokens in a.tokens:
        print(row(trial, tokens, a.repeats), flush=True)


if __name__ == "__main__":
    main()
