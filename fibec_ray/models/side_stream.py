"""Copies weights to a CUDA device on a separate stream, while the device computes with the previous weight.

Two slots take turns. Each has GPU memory and page-locked host memory, since only copies from there are asynchronous.
Events order their uses:

- a copy into GPU memory waits for the product that last read it;
- a product waits for the copy of its weight;
- the host waits for a copy before it writes to the page-locked memory again.

So the host is at most two weights ahead, and the GPU never holds more than two.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Copy(NamedTuple):
    """A copy that has started. ready: event at its end."""

    slot: _Slot
    weight: Tensor
    ready: Any


class SideStream:
    """The copier of a CUDA device (`prefetch.Copier`)."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._slots = deque([_Slot(device), _Slot(device)])

    def start(self, weight: Tensor) -> Copy:
        """Start to copy a weight from host memory or from another GPU."""
        self._slots.rotate()
        slot = self._slots[0]
        source, place = slot.source(weight), slot.place(weight)
        with torch.cuda.stream(self._stream):
            if slot.read is not None:
                self._stream.wait_event(slot.read)
            place.copy_(source, non_blocking=True)
            slot.copied = self._stream.record_event()
        return Copy(slot, place, slot.copied)

    def finish(self, started: Copy) -> Tensor:
        """The weight on the device. The current stream's next work waits for the copy."""
        torch.cuda.current_stream(self._device).wait_event(started.ready)
        return started.weight

    def release(self, started: Copy) -> None:
        """Call this once all work that reads the weight is queued on the current stream."""
        started.slot.read = torch.cuda.current_stream(self._device).record_event()


class _Slot:
    """Memory for one weight. It grows to the largest weight it has held."""

    def __init__(self, device: torch.device):
        self.read: Any = None
        """event after the newest work that reads the GPU memory"""
        self.copied: Any = None
        """event after the newest copy"""
        self._device = device
        self._host: Tensor | None = None
        self._gpu: Tensor | None = None

    def source(self, weight: Tensor) -> Tensor:
        """The tensor to copy from: page-locked memory, filled with the weight, or a weight that is on a GPU already."""
        if weight.is_cuda:
            return weight
        self.synchronize_host()
        if self._host is None or self._host.numel() < weight.nbytes:
            self._host = torch.empty(weight.nbytes, dtype=torch.uint8, pin_memory=True)
        return _as(self._host, weight).copy_(weight)

    def synchronize_host(self) -> None:
        """Wait until the newest copy has ended."""
        if self.copied is not None:
            self.copied.synchronize()

    def place(self, weight: Tensor) -> Tensor:
        """The GPU memory, in the weight's shape."""
        if self._gpu is None or self._gpu.numel() < weight.nbytes:
            # Queued work may still read the old memory, or a freed tensor whose memory the new one gets.
            torch.cuda.synchronize(self._device)
            self._gpu = None
            self._gpu = torch.empty(weight.nbytes, dtype=torch.uint8, device=self._device)
        return _as(self._gpu, weight)


def _as(memory: Tensor, weight: Tensor) -> Tensor:
    return memory[: weight.nbytes].view(weight.dtype).view(weight.shape)
