"""Arithmetic on named tensors (`dict[str, Tensor]`): how adapters, deltas and memories are kept and sent."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, islice

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

_SHORT = (torch.float32, torch.bfloat16, torch.float16)
"""Types whose every value w x / w gives back when it is computed in float64."""


def clone(tensors: Mapping[str, Tensor]) -> Tensors:
    """Detached copies of all tensors."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def select(tensors: Mapping[str, Tensor], names: Collection[str]) -> Tensors:
    """The entries whose name is in `names`, in the order of `tensors`."""
    return {name: value for name, value in tensors.items() if name in names}


def drop(tensors: Mapping[str, Tensor], names: Collection[str]) -> Tensors:
    """The entries whose name is not in `names`, in the order of `tensors`."""
    return {name: value for name, value in tensors.items() if name not in names}


def subtract(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensors:
    """left - right over the names of `left`."""
    return {name: value - right[name] for name, value in left.items()}


def add(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensors:
    """left + right over the names of `left`."""
    return {name: value + right[name] for name, value in left.items()}


def scale(tensors: Mapping[str, Tensor], factor: float) -> Tensors:
    """factor * tensors."""
    return {name: value * factor for name, value in tensors.items()}


def joined(parts: Sequence[Tensor], fill: float) -> Tensor:
    """Concatenate tensors (n, T, ...) with different T, `fill` where a part has no entries; or tensors (n,)."""
    if parts[0].dim() == 1:
        return torch.cat(list(parts))
    most = max(part.shape[1] for part in parts)
    behind = [part.new_full((len(part), most - part.shape[1], *part.shape[2:]), fill) for part in parts]
    return torch.cat([torch.cat(pair, 1) for pair in zip(parts, behind, strict=True)])


def accumulate(sums: Tensors, values: Mapping[str, Tensor]) -> None:
    """Adds the values to the sums, in place; a first value becomes the sum itself."""
    for name, value in values.items():
        sums[name] = sums[name].add_(value) if name in sums else value


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of the payload on the wire: the values alone; names and shapes are known to both sides."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """True if no tensor has a nan or an infinity."""
    return all(map(is_finite, tensors.values()))


def is_finite(value: Tensor) -> bool:
    """True if the tensor has no nan and no infinity."""
    # A sum of finite values can overflow, but one with a nan or an infinity is never finite. It takes a fifth as long.
    return math.isfinite(value.sum().item()) or bool(torch.isfinite(value).all())


def joint_norm(tensors: Mapping[str, Tensor]) -> float:
    """The Euclidean norm of all values together, in float64."""
    return math.hypot(*(float(torch.linalg.vector_norm(value.double())) for value in tensors.values()))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, dtypes, shapes and bits: equal digests mean bitwise-equal tensors."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name]
        state.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        state.update(_raw(value))
    return state.hexdigest()


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors under the names `prefix/NAME`."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def under_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The entries below `prefix/`, with the prefix taken off."""
    start = f"{prefix}/"
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def weighted_mean(updates: Iterable[tuple[float, Mapping[str, Tensor]]]) -> Tensors:
    """sum_k w_k x_k / sum_k w_k, accumulated in float64 in the order given, returned in the dtype of the first x_k.

    Streams: holds one float64 sum and at most two updates at a time. An empty dict without updates, or if all weights
    are 0.
    """
    coming = iter(updates)
    ahead = list(islice(coming, 2))
    if len(ahead) == 1 and ahead[0][0] and all(value.dtype in _SHORT for value in ahead[0][1].values()):
        return {name: value + 0.0 for name, value in ahead[0][1].items()}  # the bits that the sum below would give
    coming = chain(ahead, coming)
    del ahead  # so that updates are freed as the loop goes on
    total, sums, dtypes = 0.0, {}, {}
    for weight, tensors in coming:
        total += weight
        for name, value in tensors.items():
            if name not in sums:
                sums[name], dtypes[name] = torch.zeros_like(value, dtype=torch.float64), value.dtype
            sums[name].add_(value.double(), alpha=weight)
    return {name: (value / total).to(dtypes[name]) for name, value in sums.items()} if total else {}


def _raw(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
