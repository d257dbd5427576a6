"""The steps of the GPU check: what each does, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fibec_ray.testing.gpu.equal import actors, lanes, resumed, settings
from fibec_ray.testing.gpu.lines import Line
from fibec_ray.testing.gpu.memory import backends, caps, seven_billion
from fibec_ray.testing.gpu.methods import every_method, every_model
from fibec_ray.testing.gpu.place import Place, Wrong, line


def product(place: Place) -> Iterator[Line]:
    """A product of matrices in each dtype, against the same in float64."""

    def work(dtype: torch.dtype, limit: float) -> str:
        a, b = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
        found = (a.to(place.device, dtype) @ b.to(place.device, dtype)).cpu().double()
        difference = float((found - a.double() @ b.double()).norm() / (a.double() @ b.double()).norm())
        if not difference < limit:
            raise Wrong(f"relative error {difference:.1e}, allowed {limit:.0e}")
        return f"relative error {difference:.1e}"

    for name, dtype, limit in (("float32", torch.float32, 1e-5), ("bfloat16", torch.bfloat16, 2e-2)):
        yield line(name, lambda dtype=dtype, limit=limit: work(dtype, limit))  # type: ignore[misc]


@dataclass(frozen=True)
class Step:
    """work: yields lines as it goes. limit_s: on one GPU; a step that takes longer is stopped and counts as failed."""

    work: Callable[[Place], Iterator[Line]]
    limit_s: float

    @property
    def summary(self) -> str:
        """What it does, in one sentence."""
        return (self.work.__doc__ or "").strip().splitlines()[0]


STEPS = {
    "product": Step(product, 40),
    "methods": Step(every_method, 150),
    "actors": Step(actors, 90),
    "lanes": Step(lanes, 60),
    "seven": Step(seven_billion, 75),
    "backends": Step(backends, 60),
    "models": Step(every_model, 60),
    "settings": Step(settings, 40),
    "resume": Step(resumed, 30),
    "memory": Step(caps, 30),
}
"""In the order in which they start. The table of speeds comes after them."""
