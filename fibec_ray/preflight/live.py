"""Measures peak tensor memory of some work, with fake or real tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_


def peak_bytes(work: Callable[[], object], known: Iterable[Tensor] = ()) -> int:
    """Peak bytes of the tensors that the work creates. known: existing tensors, whose views do not count."""
    with _Live(known) as live:
        work()
    return live.peak


class _Live(TorchDispatchMode):
    """Records the result of each operation, including backward ones. A storage counts as long as a tensor uses it."""

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.peak = self._now = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_(self._see, out)
        return out

    def _see(self, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size
