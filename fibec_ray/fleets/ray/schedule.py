"""Choose an actor's next call: the longest first, by the costs measured so far.

A device takes about a + b * num_samples seconds, and a curriculum changes a and b during the run. While many calls
wait, an actor holds a second one, so it never idles until the driver answers. The last calls go one at a time to free
actors. Handing out the whole round at its start would save the driver about a millisecond per call, but would leave a
slow actor with all of its share.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fibec_ray.reports import DeviceReport

FORGET = 0.5
"""Weight of a round in the cost model, relative to the round after it."""


@dataclass
class Call:
    """Work for an actor. submit(actor, attempt) returns refs of its results; the last, a small one, is awaited.

    key: the caller's name for it. seconds: predicted time, in any unit. num_devices: how many devices it works for,
    which scales its time limit. home: the actor that must do it (per_device); None: any actor of its kind.
    """

    key: int
    submit: Callable[[Any, int], list[Any]]
    seconds: float = 0.0
    num_devices: int = 1
    home: int | None = None
    kind: int = 0
    attempt: int = 0
    what: str = ""
    """description for errors and notes"""


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


class Backlog:
    """The calls that are not with an actor yet."""

    def __init__(self, calls: Sequence[Call], kinds: Sequence[int]):
        """kinds: kind of each actor; an actor takes only calls of its own kind."""
        self._kinds, self._size = kinds, Counter(kinds)
        self._anywhere: dict[int, deque[Call]] = {kind: deque() for kind in {*kinds, *(call.kind for call in calls)}}
        self._at_home: dict[int, deque[Call]] = {}
        for call in sorted(calls, key=lambda call: -call.seconds):
            at = self._anywhere[call.kind] if call.home is None else self._at_home.setdefault(call.home, deque())
            at.append(call)

    def __bool__(self) -> bool:
        return any(self._anywhere.values()) or bool(self._at_home)

    def take(self, actor: int, num_held: int) -> Call | None:
        """The next call for an actor that holds num_held calls; None if it should get no more for now."""
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
        """Let any actor take the calls that belonged to a lost one."""
        for call in reversed(self._at_home.pop(actor, deque())):
            self.put_back(call)

    def put_back(self, call: Call) -> None:
        """Put a call that was lost with its actor first in line, for any actor of its kind."""
        call.home = None
        self._anywhere[call.kind].appendleft(call)
