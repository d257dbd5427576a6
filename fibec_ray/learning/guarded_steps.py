"""Gradients of training steps in which each sample's gradient is clipped and their sum gets noise.

For one device, and for several with a leading lane axis. Shapes: D lanes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fibec_ray.curvature.clipped import clipped_sums
from fibec_ray.curvature.per_sample import Caught
from fibec_ray.parts.privacy.base import StepGuard
from fibec_ray.tensors import Tensors


@dataclass(frozen=True, eq=False)
class Guard:
    """The protection of one device's training. rng: of its noise, in the order of its steps."""

    rule: StepGuard
    rng: torch.Generator


class GuardedSteps:
    """Computes the gradients of guarded steps.

    guards: of each lane, with the same rule. shapes: of the tensors that move, without a lane axis. keep: bool
    (D, *shape), False where an entry is frozen.
    """

    def __init__(self, guards: Sequence[Guard], shapes: Mapping[str, torch.Size], keep: Mapping[str, Tensor]):
        self._guards, self._shapes, self._keep = guards, shapes, keep
        self._rule = guards[0].rule
        self.names = [name for name in shapes if name not in keep or bool(keep[name].any())]
        """tensors that need gradients of single samples"""

    def sums(self, caught: Caught, grads: Sequence[Tensor | None], lanes: Sequence[int], counted: Tensor) -> Tensors:
        """Sums of clipped gradients, (len(lanes), *shape). counted: as in `clipped_sums`."""
        keep = {name: self._keep[name][list(lanes)] for name in self.names if name in self._keep}
        return clipped_sums(caught, grads, self._rule.clip, keep, counted)

    @torch.no_grad()
    def mean(self, sums: Tensors, counts: Tensor) -> Tensors:
        """(sum + noise) / count for the first D lanes. sums: (D, *shape). counts: (D,) samples of each lane."""
        scale, guards = self._rule.clip * self._rule.noise, self._guards[: len(counts)]
        found = dict[str, Tensor]()
        for name, shape in self._shapes.items():
            # Drawn for frozen tensors too, so that a lane's noise does not depend on the other lanes.
            noise = torch.stack([torch.randn(shape, generator=guard.rng) for guard in guards]) if scale else None
            if name in sums:
                value = sums[name] if noise is None else sums[name] + scale * noise.to(sums[name].device)
                found[name] = value / counts.view(-1, *[1] * len(shape))
        return found
