"""Layers that compute with the trainable values of several devices at once.

A lane is one device's trainable values. The samples of all lanes form one batch. Frozen layers process it as one; a
trained layer multiplies each lane's samples by that lane's values.

Shapes: N samples of all lanes together, D lanes, T tokens, `in`/`out` features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Values = Mapping[str, Tensor]
"""By the tensors' names in updates."""


class LaneBank:
    """Installs lane-wise forward functions in layers, once. Without lanes they compute as usual.

    holders: as in `LocalModel`.
    """

    def __init__(self, holders: Mapping[str, nn.Module], names: Collection[str]):
        self._lanes: Sequence[Values] = ()
        self._rows: Sequence[int] = ()
        self._stack: Values | None = None
        for prefix, module in holders.items():
            if f"{prefix}.weight" in names or f"{prefix}.bias" in names:
                module.forward = partial(_FORWARDS[type(module)], self, prefix, module)

    @contextmanager
    def using(self, lanes: Sequence[Values], rows: Sequence[int]) -> Iterator[None]:
        """Compute with these lanes. rows: number of samples of each lane, in batch order."""
        self._lanes, self._rows = lanes, rows
        try:
            yield
        finally:
            self._lanes = ()

    @contextmanager
    def using_stack(self, stack: Values) -> Iterator[None]:
        """Compute with values (D, ...) by name. Each lane has N / D samples, which follow each other in the batch."""
        self._stack = stack
        try:
            yield
        finally:
            self._stack = None

    def linear(self, prefix: str, module: Any, x: Tensor) -> Tensor:
        """Apply each lane's linear layer: x (N, ..., in) -> (N, ..., out)."""
        if self._stack is not None:
            stack = self._stack
            return _linear(x, stack.get(f"{prefix}.weight"), stack.get(f"{prefix}.bias"), module)
        weights, biases = self._of(f"{prefix}.weight"), self._of(f"{prefix}.bias")
        if weights is None:
            y = F.linear(x, module.weight, None if biases is not None else module.bias)
            return y if biases is None else y + self._by_sample(biases, y)
        if len(weights) == 1 or len(set(self._rows)) > 1:
            own: Sequence[Tensor | None] = biases or [module.bias] * len(weights)
            parts = zip(x.split(self._sizes(x)), weights, own, strict=True)
            return torch.cat([F.linear(part, w, b) for part, w, b in parts])
        return _linear(x, torch.stack(weights), None if biases is None else torch.stack(biases), module)

    def layer_norm(self, prefix: str, module: Any, x: Tensor) -> Tensor:
        """Apply each lane's normalisation: x (N, ..., in) -> the same shape."""
        y = F.layer_norm(x, module.normalized_shape, eps=module.eps)
        if self._stack is not None:
            stack = self._stack
            return _scaled(y, stack.get(f"{prefix}.weight"), stack.get(f"{prefix}.bias"), module)
        weights, biases = self._of(f"{prefix}.weight"), self._of(f"{prefix}.bias")
        y = y * (module.weight if weights is None else self._by_sample(weights, y))
        bias = module.bias if biases is None else self._by_sample(biases, y)
        return y if bias is None else y + bias

    def _of(self, name: str) -> list[Tensor] | None:
        """Each lane's values; None if the tensor is not trained or no lanes are in use."""
        return [lane[name] for lane in self._lanes] if self._lanes and name in self._lanes[0] else None

    def _sizes(self, x: Tensor) -> list[int]:
        """Entries of axis 0 per lane; OPT's feed-forward has all tokens of all samples there."""
        each = len(x) // sum(self._rows)
        return [each * count for count in self._rows]

    def _by_sample(self, values: Sequence[Tensor], like: Tensor) -> Tensor:
        """D x (out,) -> (N, 1 ..., out)"""
        rows = torch.tensor(self._sizes(like), device=like.device)
        each = torch.stack(list(values)).repeat_interleave(rows, dim=0, output_size=len(like))
        return each.view(len(like), *[1] * (like.dim() - 2), -1)


def _linear(x: Tensor, weight: Tensor | None, bias: Tensor | None, module: Any) -> Tensor:
    """Apply D linear layers: x (N, ..., in) -> (N, ..., out), N / D samples each.

    weight: (D, out, in). bias: (D, out). None: as in the module. Values are cast to the dtype of x.
    """
    if weight is None:
        y = F.linear(
            x, module.weight.to(x.dtype), None if bias is not None or module.bias is None else module.bias.to(x.dtype)
        )
        return y if bias is None else _by_lane(y, len(bias)).add(bias.to(y.dtype).unsqueeze(1)).view(y.shape)
    each = bias if bias is None else bias.to(x.dtype)
    added = module.bias.to(x.dtype) if each is None and module.bias is not None else None
    if len(weight) == 1:
        return F.linear(x, weight[0].to(x.dtype), added if each is None else each[0])
    flat, stacked = _by_lane(x, len(weight)), weight.to(x.dtype).mT
    if added is None and each is not None:
        added = each.unsqueeze(1)
    y = torch.bmm(flat, stacked) if added is None else torch.baddbmm(added, flat, stacked)
    return y.view(*x.shape[:-1], -1)


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None, module: Any) -> Tensor:
    """Normalised states (N, ..., in) times the lanes' weights (D, in), plus their biases; None: as in the module."""
    y = y * module.weight if weight is None else _by_lane(y, len(weight)).mul(weight.unsqueeze(1)).view(y.shape)
    if bias is None:
        return y if module.bias is None else y + module.bias
    return _by_lane(y, len(bias)).add(bias.unsqueeze(1)).view(y.shape)


def _by_lane(x: Tensor, num_lanes: int) -> Tensor:
    """(N, ..., features) -> (D, N / D * ..., features)"""
    return x.reshape(num_lanes, -1, x.shape[-1])


_FORWARDS: Mapping[type[nn.Module], Any] = {nn.Linear: LaneBank.linear, nn.LayerNorm: LaneBank.layer_norm}


def obstacle(holders: Mapping[str, nn.Module], names: Collection[str]) -> str | None:
    """Why these tensors do not support lanes; None if they do."""
    for name in names:
        prefix, _, leaf = name.rpartition(".")
        module = holders.get(prefix)
        if type(module) not in _FORWARDS or leaf not in ("weight", "bias"):
            return f"'{name}' is not a weight or bias of a Linear or LayerNorm"
    return None
