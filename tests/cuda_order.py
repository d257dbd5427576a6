"""Checks that CUDA streams cannot race, on a machine without a GPU: the order that streams, events and waits guarantee.

Each operation has a clock: which operations of the host and of each stream have ended for certain when it starts. Two
operations on the same memory, at least one of them a write, must be ordered by their clocks. It is used within
`pretend_gpu`, which serves CUDA memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Clock = dict[str, int]
"""Number of operations that have ended for certain, by queue."""
VIEWS = {"view", "slice", "t", "transpose", "detach", "empty", "alias", "permute", "_unsafe_view", "reshape", "split"}


class Race(AssertionError):
    """Two operations on the same memory whose order is not certain."""


class Operation(NamedTuple):
    """An operation. number: on its queue, from 1."""

    queue: str
    number: int
    writes: bool
    name: str


class Queue:
    """The host or a stream."""

    def __init__(self, name: str):
        self.name, self.count = name, 0
        self.clock: Clock = {}

    def wait_for(self, clock: Clock) -> None:
        for queue, number in clock.items():
            self.clock[queue] = max(self.clock.get(queue, 0), number)

    @property
    def all_done(self) -> Clock:
        """The clock when everything that is queued here has ended."""
        return {**self.clock, self.name: self.count}


class Event:
    """A point in a stream."""

    def __init__(self, order: Order, clock: Clock):
        self._order, self.clock = order, dict(clock)

    def synchronize(self) -> None:
        self._order.host.wait_for(self.clock)


class Stream(Queue):
    """A CUDA stream."""

    def __init__(self, order: Order, name: str):
        super().__init__(name)
        self._order = order

    def record_event(self) -> Event:
        return Event(self._order, self.all_done)

    def wait_event(self, event: Event) -> None:
        self.wait_for(self._order.host.all_done)
        self.wait_for(event.clock)


class Order(TorchDispatchMode):
    """Sees all operations and raises Race."""

    def __init__(self) -> None:
        super().__init__()
        self.host, self.streams = Queue("host"), [Stream(self, "compute")]
        self.current = self.streams[0]
        self._uses: dict[int, list[Operation]] = {}
        self._kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name not in VIEWS:
            read = [arg for arg in args if isinstance(arg, Tensor)]
            in_place = name.endswith("_")
            self._run(name, read[1:] if in_place else read, read[:1] if in_place else [found])
        return found

    def _run(self, name: str, read: list[Tensor], written: list[Any]) -> None:
        used = [(tensor, False) for tensor in read] + [(t, True) for t in written if isinstance(t, Tensor)]
        on_gpu = any(tensor.is_cuda for tensor, _ in used)
        queue = self.current if on_gpu else self.host
        if on_gpu:
            queue.wait_for(self.host.all_done)  # the host queues it after all that it has done
        queue.count += 1
        for tensor, writes in used:
            self._use(tensor, Operation(queue.name, queue.count, writes, name), queue)

    def _use(self, tensor: Tensor, operation: Operation, queue: Queue) -> None:
        storage = tensor.untyped_storage()
        self._kept.append(storage)  # so that its address is not used again
        uses = self._uses.setdefault(storage._cdata, [])
        for other in uses:
            known = queue.clock.get(other.queue, 0) >= other.number or other.queue == queue.name
            if not known and (other.writes or operation.writes):
                raise Race(f"{operation} may run before {other} has ended")
        uses.append(operation)

    def synchronize(self, device: Any = None) -> None:
        for stream in self.streams:
            self.host.wait_for(stream.all_done)

    def new_stream(self, device: Any = None) -> Stream:
        self.streams.append(Stream(self, f"stream {len(self.streams)}"))
        return self.streams[-1]

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


@contextmanager
def ordered() -> Iterator[Order]:
    """Within it, torch.cuda's streams and events are those of the order that it yields."""
    with pytest.MonkeyPatch.context() as patch, Order() as order:
        patch.setattr(torch.cuda, "Stream", order.new_stream)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: order.current)
        patch.setattr(torch.cuda, "stream", order.on)
        patch.setattr(torch.cuda, "synchronize", order.synchronize)
        yield order
