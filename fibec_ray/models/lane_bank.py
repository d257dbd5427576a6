"""Layers that compute with the trainable values of several devices at once.

A lane is one device's trainable values. The samples of all lanes form one batch. Frozen layers process it as one; a
trained layer multiplies each lane's samples by that lane's values.

Shapes: N samples of all lanes together, D lanes, T tokens, `in`/`out` features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Values = Mapping[str, Tensor]
"""By the tensors' names in updates."""
Formula = Callable[[Any, Tensor, Tensor | None, Tensor | None], Tensor]
"""(module, x (N, ..., in), weights (D, ...), biases (D, ...)) -> (N, ..., out); None: the module's own"""


class LaneBank:
    """Installs lane-wise forward functions in layers, once. Without lanes they compute as usual.

    holders: as in `LocalModel`.
    """

    def __init__(self, holders: Mapping[str, nn.Module], names: Collection[str]):
        self._stack: Values = {}
        self._lanes: Sequence[Values] = ()
        self._rows: Sequence[int] = ()
        for prefix, module in holders.items():
            if f"{prefix}.weight" in names or f"{prefix}.bias" in names:
                formula = _formula(module)
                assert formula is not None, "see `obstacle`"
                module.forward = partial(self._apply, formula, prefix, module)

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
            self._stack = {}

    def as_now(self) -> AbstractContextManager[None]:
        """A reusable context that computes with the lanes in use now. Backward passes recompute blocks in it."""
        return _Again(self)

    def _apply(self, formula: Formula, prefix: str, module: Any, x: Tensor) -> Tensor:
        """Apply each lane's layer: x (N, ..., in) -> (N, ..., out)."""
        names = f"{prefix}.weight", f"{prefix}.bias"
        if not self._lanes:
            weight, bias = (self._stack.get(name) for name in names)
            return formula(module, x, weight, bias)
        lists = [[lane[name] for lane in self._lanes] if name in self._lanes[0] else None for name in names]
        if len(set(self._rows)) == 1:
            weight, bias = (None if values is None else torch.stack(values) for values in lists)
            return formula(module, x, weight, bias)
        alone = [[None] * len(self._rows) if values is None else [v.unsqueeze(0) for v in values] for values in lists]
        parts = zip(x.split(self._sizes(x)), *alone, strict=True)
        return torch.cat([formula(module, part, weight, bias) for part, weight, bias in parts])

    def _sizes(self, x: Tensor) -> list[int]:
        """Entries of axis 0 per lane; OPT's feed-forward has all tokens of all samples there."""
        each = len(x) // sum(self._rows)
        return [each * count for count in self._rows]


class _Again(AbstractContextManager[None]):
    """Brings back the lanes of a forward pass while a backward pass recomputes a block."""

    def __init__(self, bank: LaneBank):
        self._bank, self._then = bank, _state(bank)
        self._before: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        self._before.append(_state(self._bank))
        self._bank.__dict__.update(self._then)

    def __exit__(self, *error: object) -> None:
        self._bank.__dict__.update(self._before.pop())


def _state(bank: LaneBank) -> dict[str, Any]:
    return dict(bank.__dict__)


def _linear(module: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """D linear layers. Values are cast to the dtype of x, which differs with `backbone.adapter_dtype: base`."""
    of_module = None if bias is not None or module.bias is None else module.bias.to(x.dtype)
    if weight is None:
        y = F.linear(x, module.weight.to(x.dtype), of_module)
        return y if bias is None else _by_lane(y, len(bias)).add(bias.to(x.dtype).unsqueeze(1)).view(y.shape)
    if len(weight) == 1:
        return F.linear(x, weight[0].to(x.dtype), of_module if bias is None else bias[0].to(x.dtype))
    added = of_module if bias is None else bias.to(x.dtype).unsqueeze(1)
    flat, stacked = _by_lane(x, len(weight)), weight.to(x.dtype).mT
    y = torch.bmm(flat, stacked) if added is None else torch.baddbmm(added, flat, stacked)
    return y.view(*x.shape[:-1], -1)


def _layer_norm(module: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """D normalisations that differ in their weights and biases."""
    y = F.layer_norm(x, module.normalized_shape, eps=module.eps)
    y = y * module.weight if weight is None else _by_lane(y, len(weight)).mul(weight.unsqueeze(1)).view(y.shape)
    if bias is not None:
        return _by_lane(y, len(bias)).add(bias.unsqueeze(1)).view(y.shape)
    return y if module.bias is None else y + module.bias


def _by_lane(x: Tensor, num_lanes: int) -> Tensor:
    """(N, ..., features) -> (D, N / D * ..., features)"""
    return x.reshape(num_lanes, -1, x.shape[-1])


_FORMULAS: Mapping[type[nn.Module], Formula] = {nn.Linear: _linear, nn.LayerNorm: _layer_norm}


def _formula(module: Any) -> Formula | None:
    """What a module computes for several lanes: a known formula, or its own `for_lanes`."""
    if (own := getattr(type(module), "for_lanes", None)) is not None:
        return partial(_own, own)
    return _FORMULAS.get(type(module))


def _own(formula: Any, module: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None and bias is None:
        y: Tensor = type(module).forward(module, x)
        return y
    found: Tensor = formula(module, x, weight, bias)
    return found


def obstacle(holders: Mapping[str, nn.Module], names: Collection[str]) -> str | None:
    """Why these tensors do not support lanes; None if they do."""
    for name in names:
        prefix, _, leaf = name.rpartition(".")
        module = holders.get(prefix)
        if module is None or _formula(module) is None or leaf not in ("weight", "bias"):
            return f"'{name}' is not a weight or bias of a Linear or LayerNorm"
    return None
