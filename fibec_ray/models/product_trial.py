"""Finds the fastest products of frozen layers on this machine, by a short trial on shapes of the model's own layers.

A fleet calls it once, before workers build their models; `fibec-ray plan` calls it to predict the choice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.models.backbone import from_config
from fibec_ray.models.kernels import multiplier, products_of
from fibec_ray.models.products import candidates
from fibec_ray.models.settings import PretrainedSettings
from fibec_ray.parts.peft.base import is_transposed
from fibec_ray.types import Products

TIE = 1.05
"""The default stays unless another candidate is faster by more than this factor, so that noise does not decide."""
TRIAL_S = 0.2
"""Seconds after which no further turn begins."""
TURNS = 8
"""Most turns. Candidates take turns, and the shortest time of each counts."""
HOPELESS = 3.0
"""A turn that is slower than the best by this factor is cut short. A candidate is out after two such turns, or after
one that is slower by the square of this factor."""
SMALL = 4e6
"""Flops. Smaller products take hardly longer than the call itself, so there is nothing to choose."""
MOST = 768
"""Most inputs and outputs of a layer in a trial. Larger layers take longer and give the same ratios."""
MOST_ROWS = 256
WARM_S = 0.02
"""Seconds. A shorter first call is repeated, because the library's set-up may be most of it."""


@dataclass(frozen=True)
class Shape:
    """A frozen layer x (rows, inside) W^T (inside, out). weight: how many layers of the model it stands for."""

    rows: int
    inside: int
    out: int
    weight: float = 1.0

    @property
    def flops(self) -> float:
        """Operations of one product."""
        return 2.0 * self.rows * self.inside * self.out


def choose(spec: PretrainedSettings, rows: int, threads: int) -> Products:
    """The fastest products for a base on this machine. rows: tokens of a training batch. threads: of a process.

    Tiny layers get the default without a trial.
    """
    able, shapes = candidates(spec.dtype), shapes_of(spec, rows)
    if len(able) == 1 or is_tiny(shapes):
        return able[0]
    with using_threads(threads):
        return best(able, Trial(shapes, getattr(torch, spec.dtype)).seconds)


def is_tiny(shapes: Sequence[Shape]) -> bool:
    """True if no layer is large enough for products to differ."""
    return max((shape.flops for shape in shapes), default=0.0) < SMALL


def best(
    able: Sequence[Products],
    seconds: Callable[[Products, float], float],
    clock: Callable[[], float] = time.perf_counter,
) -> Products:
    """The fastest candidate; the first one if it is about as fast.

    seconds(products, limit): time of one turn, which may end when the limit has passed. Raises RuntimeError for
    products that cannot compute here; they are left out.
    """
    began, least, left = clock(), dict.fromkeys(able, inf), list(able)
    strikes = Counter[Products]()
    for turn in range(TURNS):
        for products in tuple(left):
            limit = HOPELESS * min(least.values())
            try:
                least[products] = min(least[products], took := seconds(products, limit))
            except RuntimeError:
                left.remove(products)
                continue
            strikes[products] += (took > limit) + (took > HOPELESS * limit)
            if strikes[products] >= 2:
                left.remove(products)
        if turn and clock() - began > TRIAL_S:
            break
    fastest = min(able, key=least.__getitem__)
    return able[0] if least[able[0]] <= TIE * least[fastest] else fastest


def shapes_of(spec: PretrainedSettings, rows: int) -> list[Shape]:
    """The three layer shapes with most of the base's work, the smallest first, cut to a trial's size."""
    with torch.device("meta"):
        base = from_config(spec, 2)
    counts = Counter(tuple(layer.weight.shape[:: 1 if is_transposed(layer) else -1]) for layer in products_of(base))
    work = {size: count * size[0] * size[1] for size, count in counts.items()}
    heaviest = sorted(work, key=lambda size: (-work[size], size))[:3]
    cut = Counter[tuple[int, int]]()
    for inside, out in heaviest:
        cut[min(inside, MOST), min(out, MOST)] += work[inside, out]
    shapes = [Shape(min(rows, MOST_ROWS), *size, total / (size[0] * size[1])) for size, total in cut.items()]
    return sorted(shapes, key=lambda shape: shape.flops)


@dataclass
class Trial:
    """Times products on made-up layers of the given shapes."""

    shapes: Sequence[Shape]
    dtype: torch.dtype
    _made: dict[Shape, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    _least: dict[tuple[Products, Shape, bool], float] = field(default_factory=dict)

    def seconds(self, products: Products, limit: float = inf) -> float:
        """Time of all layers, with each one's shortest time so far. Ends early if this turn exceeds the limit."""
        total, turn = 0.0, 0.0
        for shape in self.shapes:
            for backward in (False, True):
                took = self.product(products, shape, backward)
                least = min(took, self._least.get((products, shape, backward), inf))
                self._least[products, shape, backward] = least
                total, turn = total + shape.weight * least, turn + shape.weight * took
            if turn > limit:
                return turn
        return total

    def product(self, products: Products, shape: Shape, backward: bool = False) -> float:
        """Seconds of one layer's forward or backward product."""
        multiply = multiplier(products, self.dtype) or F.linear
        x, weight, e = self._tensors(shape)
        new = (products, shape, backward) not in self._least
        if backward:
            return _timed(lambda: multiply(e, weight.t(), None), new)
        return _timed(lambda: multiply(x, weight, None), new)

    def _tensors(self, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        if shape not in self._made:
            sizes = (shape.rows, shape.inside), (shape.out, shape.inside), (shape.rows, shape.out)
            x, weight, e = (torch.full(size, 0.5, dtype=self.dtype) for size in sizes)
            self._made[shape] = x, weight, e
        return self._made[shape]


def _timed(work: Callable[[], object], new: bool) -> float:
    """Seconds of one call. new: this is the first call, which is repeated if it is short (see WARM_S)."""
    # The time of a single thread leaves out what other processes take.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    work()
    took = clock() - began
    return _timed(work, False) if new and took < WARM_S else took


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Use this number of torch threads within a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
