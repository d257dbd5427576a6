"""Chooses an actor's next call: the longest first, by the costs that the run has shown so far.

A device costs about a + b * num_samples seconds, and a curriculum moves a and b as the run goes on. An actor holds a
second call while many wait, so that it never idles until the driver answers; the last calls go one at a time to whoever
is free. Lists that are dealt out when a round starts would spare the driver those answers (about a millisecond each),
but leave a slow actor with all of its share.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fibec_ray.reports import DeviceReport

FORGET = 0.5
"""What a round weighs in the cost model, of what the round after it does."""


@dataclass
class Call:
    """submit(actor, attempt) -> the refs of its results; the last one is small and waited for.

    key: what the caller knows it by. seconds: predicted, in any unit. num_devices: that it works for, which scales its
    time limit. home: the actor that it belongs to (per_device), or None for any of its kind.
    """

    key: int
    submit: Callable[[Any, int], list[Any]]
    seconds: float = 0.0
    num_devices: int = 1
    home: int | None = None
    kind: int = 0
    attempt: int = 0
    what: str = ""
    """in words, for errors and notes"""


class CostModel:
    """Seconds of a device's work by its number of samples: least squares over the rounds so far.

    Before any round: the number of samples itself. a and b are never negative, so that more samples never cost less.
    """

    def __init__(self) -> None:
        self._count = self._x = self._y = self._xx = self._xy = 0.0

    def learn(self, reports: Iterable[DeviceReport]) -> None:
        """One round's reports."""
        self._count, self._x, self._y, self._xx, self._xy = (
            FORGET * value for value in (self._count, self._x, self._y, self._xx, self._xy)
        )
        for report in reports:
            x, y = float(report.num_samples), report.compute_s
            self._count += 1
            self._x, self._y = self._x + x, self._y + y
            self._xx, self._xy = self._xx + x * x, self._xy + x * y

    def seconds(self, num_samples: Iterable[int]) -> float:
        """Of some devices, one after the other."""
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


class Backlog:
    """The calls that no actor has yet."""

    def __init__(self, calls: Sequence[Call], kinds: Sequence[int]):
        """kinds: of the actors, each of which does calls of its own kind alone."""
        self._kinds, self._size = kinds, Counter(kinds)
        self._anywhere: dict[int, deque[Call]] = {kind: deque() for kind in {*kinds, *(call.kind for call in calls)}}
        self._at_home: dict[int, deque[Call]] = {}
        for call in sorted(calls, key=lambda call: -call.seconds):
            at = self._anywhere[call.kind] if call.home is None else self._at_home.setdefault(call.home, deque())
            at.append(call)

    def __bool__(self) -> bool:
        return any(self._anywhere.values()) or bool(self._at_home)

    def take(self, actor: int, num_held: int) -> Call | None:
        """The next call of an actor that has num_held calls; None if it should have no more for now."""
        kind = self._kinds[actor]
        anywhere = self._anywhere[kind]
        if num_held > 1 or (num_held == 1 and len(anywhere) <= self._size[kind]):
            return None
        calls = self._at_home.get(actor, anywhere)
        call = calls.popleft() if calls else None
        if not calls:
            self._at_home.pop(actor, None)
        return call

    def release(self, actor: int) -> None:
        """What belongs to an actor that is lost goes to anyone."""
        for call in reversed(self._at_home.pop(actor, deque())):
            self.put_back(call)

    def put_back(self, call: Call) -> None:
        """A call that was lost with its actor: first in line, for any of its kind."""
        call.home = None
        self._anywhere[call.kind].appendleft(call)
