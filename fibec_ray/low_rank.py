"""Pairs of LoRA matrices by name, and exact arithmetic on products of low rank.

A pair "X" is X.lora_A.weight (r, in) and X.lora_B.weight (out, r). Its product B A is (out, in) and need not be formed.
Shapes: r rank of a pair, M pairs in a sum, R the sum of their ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from fibec_ray.tensors import Tensors

A, B = ".lora_A.weight", ".lora_B.weight"

CORE = ".lora_R.weight"
"""X.lora_R.weight (r, r): the trained matrix between a frozen pair X, in LoRA-SB."""

MOVED = ".moved"
"""X.moved (out, in): what the server has merged into the base weight of a pair X, in units of LoRA's scaling."""


def pairs(names: Collection[str]) -> list[str]:
    """The prefixes X of all pairs among the names, in their order."""
    return [name.removesuffix(A) for name in names if name.endswith(A) and name.removesuffix(A) + B in names]


def rank_axis(name: str) -> int | None:
    """Along which axis a tensor has one entry for each rank: rows of A, columns of B."""
    return 0 if name.endswith(A) else 1 if name.endswith(B) else None


def cut(values: Mapping[str, Tensor], rank: int) -> Tensors:
    """The first `rank` rows of every A and columns of every B; other tensors as they are."""
    axes = {name: rank_axis(name) for name in values}
    return {
        name: value if (axis := axes[name]) is None else value.narrow(axis, 0, min(rank, value.shape[axis]))
        for name, value in values.items()
    }


def pad(values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensors:
    """Zeros behind every tensor that is smaller than its namesake in `like`."""
    return {name: _padded(value, like[name].shape) for name, value in values.items()}


def blank(values: Mapping[str, Tensor], rank: int) -> Tensors:
    """The same shapes, all ranks from `rank` on set to zero."""
    return pad(cut(values, rank), values)


def scaled(values: Mapping[str, Tensor], factor: float) -> Tensors:
    """Every A and B times sqrt(factor), so that B A is multiplied by factor; other tensors as they are."""
    if factor == 1:
        return dict(values)
    return {n: value if rank_axis(n) is None else value * factor**0.5 for n, value in values.items()}


def product_norm(a: Tensor, b: Tensor) -> float:
    """||B A||_F without forming it: tr((B^T B) (A A^T))^{1/2}. a: (r, in). b: (out, r)."""
    a, b = a.double(), b.double()
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())


def best_factors(left: Sequence[Tensor], right: Sequence[Tensor], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best approximation of sum_m B_m A_m of the given rank, and all singular values of the sum.

    left: M tensors B_m (out, r_m). right: M tensors A_m (r_m, in). Returns B (out, rank), A (rank, in), float64, with
    the square roots of the singular values in both, zeros behind the true rank; and (min(R, out, in),) singular values.
    The (out, in) sum is not formed: QR of both stacks, then the SVD of an (R, R) core.
    """
    q_left, core_left = torch.linalg.qr(torch.cat([b.double() for b in left], 1))
    q_right, core_right = torch.linalg.qr(torch.cat([a.double() for a in right], 0).T)
    u, values, v = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
    roots = values[:rank].sqrt()
    b, a = q_left @ (u[:, :rank] * roots), (roots[:, None] * v[:rank]) @ q_right.T
    return _padded(b, (b.shape[0], rank)), _padded(a, (rank, a.shape[1])), values


def _padded(value: Tensor, shape: Sequence[int]) -> Tensor:
    if value.shape == torch.Size(shape):
        return value
    out = value.new_zeros(tuple(shape))
    out[tuple(slice(0, size) for size in value.shape)] = value
    return out
