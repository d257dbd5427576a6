"""Choose an actor's next call: those of the nearest round first, then the longest by the costs measured so far.

A device takes about a + b * num_samples seconds, and a curriculum changes a and b during the run. While many calls
wait, an actor holds a second one, so it never idles until the driver answers. The last calls go one at a time to free
actors. Handing out the whole round at its start would save the driver about a millisecond per call, but would leave a
slow actor with all of its share.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from fibec_ray.reports import DeviceReport

FORGET = 0.5
"""Weight of a round in the cost model, relative to the round after it."""


@dataclass
class Call:
    """Work for an actor. submit(actor, attempt) returns refs of its results; the last, a small one, is awaited.

    key: the caller's name for it. seconds: predicted time, in any unit. num_devices: how many devices it works for,
    which scales its time limit. home: the actor that must do it (per_device); None: any actor of its kind. due: the
    round that needs its result.
    """

    key: Hashable
    submit: Callable[[Any, int], list[Any]]
    seconds: float = 0.0
    num_devices: int = 1
    home: int | None = None
    kind: int = 0
    attempt: int = 0
    what: str = ""
    """description for errors and notes"""
    due: int = 0
    batch: Batch | None = None

    @property
    def wanted(self) -> bool:
        """False once its batch is dropped."""
        return self.batch is None or not self.batch.dropped


@dataclass
class Ended:
    """A call that has ended: refs of all its results except the last, and the value of the last.

    attempt: number of the attempt that succeeded. lost: why the call was given up, if it was; it then has no results.
    """

    key: Any
    refs: list[Any]
    value: Any
    attempt: int = 0
    lost: Exception | None = None


@dataclass(eq=False)
class Batch:
    """Calls whose results are awaited together. max_retries, spares: see `ActorPool.run`."""

    max_retries: int
    spares: bool = False
    ended: deque[Ended] = field(default_factory=deque)
    """ended calls that were not taken yet"""
    num_open: int = 0
    """calls that have not ended"""
    dropped: bool = False


class CostModel:
    """Seconds of a device's work by its number of samples: least squares over the rounds so far.

    Before any round: the number of samples itself. a and b are never negative, so that more samples never cost less.
    """

    def __init__(self) -> None:
        self._count = self._x = self._y = self._xx = self._xy = 0.0

    def learn(self, reports: Iterable[DeviceReport]) -> None:
        """Update the model with one round's reports."""
        self._count, self._x, self._y, self._xx, self._xy = (
            FORGET * value for value in (self._count, self._x, self._y, self._xx, self._xy)
        )
        for report in reports:
            x, y = float(report.num_samples), report.compute_s
            self._count += 1
            self._x, self._y = self._x + x, self._y + y
            self._xx, self._xy = self._xx + x * x, self._xy + x * y

    def seconds(self, num_samples: Iterable[int]) -> float:
        """Predicted seconds for some devices, one after the other."""
        a, b = self._line()
        return sum(a + b * count for count in num_samples)

    def _line(self) -> tuple[float, float]:
        if not self._xx:
            return 0.0, 1.0
        spread = self._count * self._xx - self._x * self._x
        if spread > 1e-9 * self._count * self._xx:
            b = (self._count * self._xy - self._x * self._y) / spread
            a = (self._y - b * self._x) / self._count
            if a >= 0 and b >= 0:
                return a, b
        return 0.0, self._xy / self._xx


Place = tuple[int, float, int]
Entry = tuple[Place, Call]
SOONEST = -2
"""A `due` before every round and the setup phase."""


class Backlog:
    """The calls that are not with an actor yet."""

    def __init__(self, calls: Sequence[Call], kinds: Sequence[int]):
        """kinds: kind of each actor; an actor takes only calls of its own kind."""
        self._kinds, self._size = list(kinds), Counter(kinds)
        self._anywhere: dict[int, list[Entry]] = {}
        self._at_home: dict[int, list[Entry]] = {}
        self._later, self._sooner = count(), count(0, -1)
        self.add(calls)

    def __bool__(self) -> bool:
        return any(self._anywhere.values()) or bool(self._at_home)

    def add(self, calls: Iterable[Call]) -> None:
        """Add calls: the nearest round's go first, then the longest."""
        for call in calls:
            at, key = (self._anywhere, call.kind) if call.home is None else (self._at_home, call.home)
            heapq.heappush(at.setdefault(key, []), ((call.due, -call.seconds, next(self._later)), call))

    def remove(self, batch: Batch) -> None:
        """Drop the calls of a batch."""
        for shelf in (self._anywhere, self._at_home):
            for key, entries in list(shelf.items()):
                shelf[key] = [entry for entry in entries if entry[1].batch is not batch]
                heapq.heapify(shelf[key])
        self._at_home = {key: entries for key, entries in self._at_home.items() if entries}

    def employ(self, kind: int) -> None:
        """Add an actor of this kind."""
        self._kinds.append(kind)
        self._size[kind] += 1

    def take(self, actor: int, num_held: int) -> Call | None:
        """The next call for an actor that holds num_held calls; None if it should get no more for now."""
        kind = self._kinds[actor]
        anywhere = self._anywhere.setdefault(kind, [])
        if num_held > 1 or (num_held == 1 and len(anywhere) <= self._size[kind]):
            return None
        calls = self._at_home.get(actor, anywhere)
        call = heapq.heappop(calls)[1] if calls else None
        if not calls:
            self._at_home.pop(actor, None)
        return call

    def release(self, actor: int) -> None:
        """Let any actor take the calls that belonged to a lost one."""
        for _, call in sorted(self._at_home.pop(actor, []), key=_place, reverse=True):
            self.put_back(call)

    def put_back(self, call: Call) -> None:
        """Put a call that was lost with its actor first in line, for any actor of its kind."""
        call.home = None
        heapq.heappush(self._anywhere.setdefault(call.kind, []), ((SOONEST, 0.0, next(self._sooner)), call))


def _place(entry: Entry) -> Place:
    return entry[0]
