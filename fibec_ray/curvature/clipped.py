"""Sums of clipped per-sample gradients, as DP-SGD needs them.

Shapes: D devices of a joint pass, B samples of each, N = D B.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fibec_ray.curvature.per_sample import Caught
from fibec_ray.tensors import Tensors


@torch.no_grad()
def clipped_sums(
    caught: Caught,
    grads: Sequence[Tensor | None],
    most: float,
    keep: Mapping[str, Tensor],
    counted: Tensor,
) -> Tensors:
    """{name: (D, *shape)} float32: sum_i g_i min(1, most / |g_i|) over the samples of each device.

    g_i: gradient of sample i over all tensors that were caught. grads: of the summed losses, for `caught.tensors`.
    keep: bool (D, *shape), False where an entry is frozen; such entries count as 0. counted: bool (D, B), False for
    samples that only fill up a batch. One module at a time, and twice, so that the gradients of all samples of all
    modules are never in memory together.
    """
    squares = torch.zeros(counted.numel(), device=counted.device)
    for _, value in _gradients(caught, grads, keep, len(counted)):
        squares += value.square().flatten(1).sum(1)
    factors = (most / squares.sqrt()).clamp(max=1.0) * counted.flatten()  # 1 for a gradient of zero
    shares = factors.view(counted.shape)
    return {
        name: torch.einsum("db,db...->d...", shares, value.unflatten(0, counted.shape))
        for name, value in _gradients(caught, grads, keep, len(counted))
    }


def _gradients(
    caught: Caught, grads: Sequence[Tensor | None], keep: Mapping[str, Tensor], num_parts: int
) -> Iterator[tuple[str, Tensor]]:
    """Gradients (N, *shape) of each tensor, module by module, 0 where it is frozen."""
    given = caught.by_prefix(grads)
    for prefix, seen in caught.modules.items():
        for name, value in seen.gradients(given[prefix], 1.0).items():
            if name in keep:
                value = (value.unflatten(0, (num_parts, -1)) * keep[name].unsqueeze(1)).flatten(0, 1)
            yield name, value
