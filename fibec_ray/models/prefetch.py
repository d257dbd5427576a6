"""Copies weights ahead of their use.

On a GPU two weights are present at a time: the one in use, and the one being copied on a separate stream. That half is
untested on a GPU; what is fetched ahead, and when, does not depend on the device.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import torch
from torch import Tensor

CONTEXT = 12
"""Number of recent weights that predict the next. More than a block has products, so recomputed blocks differ from
first passes.
"""


class Copier(Protocol):
    """Copies weights. start: begins a copy; finish: returns it, ordered before the caller's next computation."""

    def start(self, weight: Tensor) -> Any:
        """Start to copy a weight to the device."""

    def finish(self, started: Any) -> Tensor:
        """Wait for the copy and return it."""


class Prefetcher:
    """Call `fetch` for a weight, queue the work that needs it, then call `ahead`.

    The prediction is the weight that came next when the latest `context` weights last followed each other. This
    distinguishes forward passes, backward passes and recomputed blocks without further information. A wrong guess costs
    a copy. Weights belong to one model: the same tensors in every pass.
    """

    def __init__(self, copier: Copier, context: int = CONTEXT):
        self.num_fetched = self.num_foreseen = 0
        self._copier = copier
        self._followers: dict[tuple[int, ...], Tensor] = {}
        self._newest = deque([0] * context, context)
        self._ahead: tuple[Tensor, Any] | None = None

    def fetch(self, weight: Tensor) -> Tensor:
        """Return the weight on the device that computes."""
        foreseen = self._ahead is not None and self._ahead[0] is weight
        started = self._ahead[1] if self._ahead is not None and foreseen else self._copier.start(weight)
        self.num_fetched, self.num_foreseen, self._ahead = self.num_fetched + 1, self.num_foreseen + foreseen, None
        self._followers[tuple(self._newest)] = weight
        self._newest.append(id(weight))
        return self._copier.finish(started)

    def ahead(self) -> None:
        """Start copying the weight that will be fetched next, if known."""
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
    """Copies to a CUDA device on a separate stream.

    Host weights go through two page-locked buffers in turn, since only those are copied asynchronously. Each buffer has
    the size of the largest weight it has held.
    """

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
        copy.record_stream(computing)  # else its memory could be reused while it is in use
        return copy

    def _next_buffer(self) -> _Buffer:
        self._buffers.rotate()
        return self._buffers[0]


class _Buffer:
    """Page-locked host memory. in_use: an event at the end of the copy from it."""

    def __init__(self) -> None:
        self.in_use: Any = None
        self._bytes: Tensor | None = None

    def filled(self, weight: Tensor) -> Tensor:
        """Fill it with the weight's values, after the previous copy has finished."""
        if self.in_use is not None:
            self.in_use.synchronize()
        if self._bytes is None or self._bytes.numel() < weight.nbytes:
            self._bytes = torch.empty(weight.nbytes, dtype=torch.uint8, pin_memory=True)
        return self._bytes[: weight.nbytes].view(weight.dtype).view(weight.shape).copy_(weight)


def prefetcher(device: torch.device) -> Prefetcher:
    """The prefetcher for a device."""
    return Prefetcher(SideStream(device) if device.type == "cuda" else InPlace())
