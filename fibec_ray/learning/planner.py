"""Plans the rounds of a run: the schedule says when, the sampler says which devices."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from fibec_ray import seeds
from fibec_ray.errors import ConfigError
from fibec_ray.learning.job import Job
from fibec_ray.learning.planning import learning_rate
from fibec_ray.reports import DeviceReport
from fibec_ray.samplers.base import Draw, Seen
from fibec_ray.schedules.base import Flight, Foreseen, Step
from fibec_ray.types import DroppedWork, Later, RoundPlan

MOST_AHEAD = 256
"""Most rounds planned ahead, to find out when the devices at work will finish."""


Foresee = Callable[[int, int], Foreseen]
"""(device, round whose model it starts from) -> its work. Called once for each, in the order of their starts."""


class Planner:
    """Call `plan` for each round from 0 on, and `learn` with the reports of a round before planning the next.

    A plan depends only on the job, the data and those reports. To plan round t of a run again, repeat all calls.
    sizes: training samples of each device. foresee: needed if the job `is_timed`; without it the cost of dropped work
    is unknown.
    """

    def __init__(self, job: Job, sizes: Sequence[int] = (), foresee: Foresee | None = None):
        self._job, self._world = job, _World(job, sizes, foresee)
        self._steps = job.schedule.steps(self._world)
        self._known: deque[Step] = deque()
        """the steps from the next round on, as far as they are planned"""
        self._next, self._time_s = 0, 0.0
        self._newest: RoundPlan

    def plan(self, round_: int) -> RoundPlan:
        """The plan of the next round, or the newest plan again."""
        if round_ == self._next:
            if not self._known:
                self._known.append(next(self._steps))
            step = self._known.popleft()
            self._look_ahead(step)
            self._newest = self._made(step)
            self._next += 1
        assert round_ == self._newest.round, "rounds are planned in order"
        return self._newest

    def learn(self, reports: Iterable[DeviceReport]) -> None:
        """Take note of a round's reports, for samplers that use them."""
        if self._job.sampler.uses_history:
            self._world.learn(reports)

    def skip_to(self, round_: int, reports: Iterable[Iterable[DeviceReport]] = ()) -> None:
        """Plan the rounds before `round_` again, such as for a resumed run. reports: those of each, in order."""
        known = iter(reports)
        for earlier in range(self._next, round_):
            self.plan(earlier)
            self.learn(next(known, ()))

    @property
    def _last(self) -> bool:
        """True if all rounds of the run are planned."""
        return self._next + 1 + len(self._known) >= self._job.rounds

    def _look_ahead(self, step: Step) -> None:
        """Plan further rounds until it is known when the devices at work finish. Their draws must not use reports."""
        if self._job.sampler.uses_history:
            return
        open_ = {(flight.device, flight.version) for flight in step.under_way}
        for later in self._known:
            open_ -= _over(later)
        while open_ and not self._last and len(self._known) < MOST_AHEAD:
            self._known.append(next(self._steps))
            open_ -= _over(self._known[-1])

    def _made(self, step: Step) -> RoundPlan:
        round_ = self._next
        ahead = [part for at, later in enumerate(self._known, round_ + 1) for part in _parts(at, later, round_)]
        flights = [*step.cohort, *(flight for later in self._known for flight in later.cohort)]
        seconds = None if step.time_s is None else step.time_s - self._time_s
        self._time_s = self._time_s if step.time_s is None else step.time_s
        return RoundPlan(
            round=round_,
            rounds=self._job.rounds,
            cohort=tuple(flight.device for flight in step.cohort),
            learning_rate=learning_rate(self._job, round_),
            shares={one.device: one.share for one in reversed(flights) if one.share < 1 and one.version <= round_},
            dropped=tuple(flight.device for flight in step.dropped),
            dropped_work=self._cost(step.dropped),
            versions={flight.device: flight.version for flight in step.cohort if flight.version != round_},
            under_way=self._counting(step, ahead),
            ahead=tuple(ahead),
            times={} if seconds is None else {flight.device: flight.seconds for flight in step.cohort},
            seconds=seconds,
        )

    def _cost(self, dropped: Sequence[Flight]) -> DroppedWork | None:
        """The predicted cost of work that does not count. Late devices finish it, and send what is then ignored."""
        job = self._job
        works = [(flight.device, flight.work) for flight in dropped if flight.work is not None]
        if len(works) < len(dropped):
            return None
        return DroppedWork(
            flops=math.fsum(work.flops for _, work in works),
            num_bytes=sum(work.bytes_down + work.bytes_up for _, work in works),
            energy_j=math.fsum(job.system.energy_j(job.seed, device, *work) for device, work in works),
        )

    def _counting(self, step: Step, ahead: Sequence[Later]) -> dict[int, int]:
        """The devices at work whose updates will or may count."""
        known = {device for part in ahead for device in part.devices}
        over = {one for later in self._known for one in _over(later)}
        return {
            flight.device: flight.version
            for flight in step.under_way
            if flight.device in known or not (self._last or (flight.device, flight.version) in over)
        }


def _over(step: Step) -> set[tuple[int, int]]:
    """The flights that end in a step."""
    return {(flight.device, flight.version) for flight in (*step.cohort, *step.dropped)}


def _parts(at: int, later: Step, round_: int) -> list[Later]:
    """The parts of a later round's cohort that have started by `round_`."""
    versions = sorted({flight.version for flight in later.cohort if flight.version <= round_})
    return [
        Later(at, version, tuple(flight.device for flight in later.cohort if flight.version == version))
        for version in versions
    ]


def planned(job: Job, sizes: Sequence[int] = (), foresee: Foresee | None = None) -> list[RoundPlan]:
    """The plans of all rounds, as far as they are known before the run.

    A sampler that uses reports has none yet, so the run will draw other devices. The sizes of cohorts are right.
    """
    planner = Planner(job, sizes, foresee)
    return [planner.plan(round_) for round_ in range(job.rounds)]


@dataclass
class _World:
    """See `schedules.base.World`."""

    job: Job
    sizes: Sequence[int]
    foresee: Foresee | None
    _history: dict[int, Seen] = field(default_factory=dict)
    _drawn: tuple[int, int] = (-1, 0)
    """the version of the newest draw, and the number of draws for it"""

    @property
    def cohort_size(self) -> int:
        return self.job.cohort_size

    @property
    def timed(self) -> bool:
        return self.job.is_timed

    def start(self, version: int, count: int, busy: Collection[int], time_s: float, wait: bool = True) -> list[Flight]:
        time_s, available = self._available(count, busy, time_s, wait)
        if not available:
            return []
        number = self._drawn[1] if self._drawn[0] == version else 0
        self._drawn = version, number + 1
        # The first draw for a version is the same under any schedule.
        place = ("cohort", version, number) if number else ("cohort", version)
        draw = Draw(
            round_=version,
            count=count,
            available=available,
            num_devices=self.job.num_devices,
            rng=seeds.numpy_generator(self.job.seed, *place),
            sizes=self.sizes,
            history=self._history,
        )
        return [self._flight(device, version, time_s) for device in self._drawn_from(draw)]

    def learn(self, reports: Iterable[DeviceReport]) -> None:
        """Note the newest report of each device."""
        for report in reports:
            times = self._history[report.device].times if report.device in self._history else 0
            loss = report.train_loss if report.train_loss is not None and math.isfinite(report.train_loss) else None
            self._history[report.device] = Seen(
                round_=report.round,
                num_samples=report.num_samples_seen,
                train_loss=loss,
                seconds=report.sim_time_s,
                times=times + 1,
            )

    def _drawn_from(self, draw: Draw) -> tuple[int, ...]:
        """The sampler's devices. Raises ConfigError if it may not draw them."""
        sampler = self.job.sampler
        there = draw.available if isinstance(draw.available, range) else set(draw.available)
        chosen = sampler.draw(draw)
        wrong = [device for device in chosen if type(device) is not int or device not in there]
        what = f"device {wrong[0]!r}, which is not available" if wrong else ""
        if not wrong and len(set(chosen)) < len(chosen):
            what = "a device twice"
        elif not wrong and sampler.has_fixed_size and len(chosen) > draw.count:
            what = f"{len(chosen)} devices, more than draw.count, {draw.count}"
        if what:
            raise ConfigError(
                f"sampler: {sampler.kind}: draw returned {what}; return at most draw.count of draw.available, each once"
            )
        return chosen

    def _available(self, count: int, busy: Collection[int], time_s: float, wait: bool) -> tuple[float, Sequence[int]]:
        """The time of a draw, and the devices to draw from."""
        job = self.job
        everyone: Sequence[int] = range(job.num_devices)
        free = [device for device in everyone if device not in busy] if busy else everyone
        if not self.timed or job.system.availability.limits_nothing:
            return time_s, free
        if wait:
            return job.system.gather(job.seed, free, count if job.sampler.has_fixed_size else 1, time_s)
        return time_s, [device for device in free if job.system.available(job.seed, device, time_s)]

    def _flight(self, device: int, version: int, time_s: float) -> Flight:
        job = self.job
        share = job.system.share_done(job.seed, device, version)
        reports = share == 1 or job.system.partial_work
        if self.foresee is None:
            assert not self.timed, "this schedule needs predicted times"
            return Flight(device, version, time_s, time_s, share, reports)
        flops, down, up = self.foresee(device, version)
        flops *= share  # a device that drops out has done a share of the computation
        seconds = job.system.device_seconds(job.seed, device, version, flops, down, up) if self.timed else 0.0
        work = Foreseen(flops, down, up if reports else 0)
        return Flight(device, version, time_s, time_s + seconds, share, reports, work)
