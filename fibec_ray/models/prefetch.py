"""Copies weights ahead while others are in use.

On a GPU two weights are there at a time: the one that computes, and the one that a stream of its own is copying. That
half has not run on a GPU yet; what is fetched ahead, and when, does not depend on the device.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import torch
from torch import Tensor

CONTEXT = 12
"""More than a block has products, so that one that is computed again differs from one that is computed first."""


class Copier(Protocol):
    """start: begins the copy of a weight; finish: the copy, in order with what the caller computes next."""

    def start(self, weight: Tensor) -> Any: ...

    def finish(self, started: Any) -> Tensor: ...


class Prefetcher:
    """`fetch` a weight, queue the work that needs it, then look `ahead`.

    What comes next is what came next when the newest `context` weights last followed each other: that tells forward and
    backward passes, and blocks that are computed again, from each other without being told which it is. A wrong guess
    costs a copy. Weights are those of a model: the same tensors in every pass.
    """

    def __init__(self, copier: Copier, context: int = CONTEXT):
        self.num_fetched = self.num_foreseen = 0
        self._copier = copier
        self._followers: dict[tuple[int, ...], Tensor] = {}
        self._newest = deque([0] * context, context)
        self._ahead: tuple[Tensor, Any] | None = None

    def fetch(self, weight: Tensor) -> Tensor:
        """The weight where it is needed."""
        foreseen = self._ahead is not None and self._ahead[0] is weight
        started = self._ahead[1] if self._ahead is not None and foreseen else self._copier.start(weight)
        self.num_fetched, self.num_foreseen, self._ahead = self.num_fetched + 1, self.num_foreseen + foreseen, None
        self._followers[tuple(self._newest)] = weight
        self._newest.append(id(weight))
        return self._copier.finish(started)

    def ahead(self) -> None:
        """Begins to copy what will be fetched next, if that is known."""
        following = self._followers.get(tuple(self._newest))
        if following is not None:
            self._ahead = following, self._copier.start(following)


class InPlace:
    """The copier of a device that computes where the weights are."""

    def start(self, weight: Tensor) -> Tensor:
        return weight

    def finish(self, started: Tensor) -> Tensor:
        return started


class SideStream:
    """Copies to a CUDA device on a stream of its own; from the host by way of two page-locked buffers in turn, as only
    those are copied while the host goes on. Each has the size of the largest weight that it has held."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._buffers = deque([_Buffer(), _Buffer()])

    def start(self, weight: Tensor) -> tuple[Tensor, Any]:
        buffer = None if weight.is_cuda else self._next_buffer()
        source = weight if buffer is None else buffer.filled(weight)
        with torch.cuda.stream(self._stream):
            copy = source.to(self._device, non_blocking=True)
            event = self._stream.record_event()
        if buffer is not None:
            buffer.in_use = event
        return copy, event

    def finish(self, started: tuple[Tensor, Any]) -> Tensor:
        copy, event = started
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(event)
        copy.record_stream(computing)  # or its memory would be given to the next copy while it is in use
        return copy

    def _next_buffer(self) -> _Buffer:
        self._buffers.rotate()
        return self._buffers[0]


class _Buffer:
    """Page-locked memory of the host. in_use: the end of the copy out of it."""

    def __init__(self) -> None:
        self.in_use: Any = None
        self._bytes: Tensor | None = None

    def filled(self, weight: Tensor) -> Tensor:
        """The weight's values in it; waits until the copy before has left it."""
        if self.in_use is not None:
            self.in_use.synchronize()
        if self._bytes is None or self._bytes.numel() < weight.nbytes:
            self._bytes = torch.empty(weight.nbytes, dtype=torch.uint8, pin_memory=True)
        return self._bytes[: weight.nbytes].view(weight.dtype).view(weight.shape).copy_(weight)


def prefetcher(device: torch.device) -> Prefetcher:
    return Prefetcher(SideStream(device) if device.type == "cuda" else InPlace())
