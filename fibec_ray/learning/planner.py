"""Plans the rounds of a run: the schedule says when, the sampler says which devices."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from fibec_ray import seeds
from fibec_ray.errors import ConfigError
from fibec_ray.learning.job import Job
from fibec_ray.learning.planning import learning_rate
from fibec_ray.reports import DeviceReport
from fibec_ray.samplers.base import Draw, Seen
from fibec_ray.schedules.base import Flight, Step
from fibec_ray.types import RoundPlan


class Planner:
    """Call `plan` for each round from 0 on, and `learn` with the reports of a round before planning the next.

    A plan depends only on the job, the data and those reports. To plan round t of a run again, repeat all calls.
    sizes: training samples of each device.
    """

    def __init__(self, job: Job, sizes: Sequence[int] = ()):
        self._job = job
        self._world = _World(job, sizes)
        self._steps = job.schedule.steps(self._world)
        self._next, self._time_s = 0, 0.0
        self._newest: RoundPlan

    def plan(self, round_: int) -> RoundPlan:
        """The plan of the next round, or once more the newest one."""
        if round_ == self._next:
            self._newest = self._made(next(self._steps))
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

    def _made(self, step: Step) -> RoundPlan:
        return RoundPlan(
            round=self._next,
            rounds=self._job.rounds,
            cohort=tuple(flight.device for flight in step.cohort),
            learning_rate=learning_rate(self._job, self._next),
            shares={flight.device: flight.share for flight in step.cohort if flight.share < 1},
            dropped=tuple(step.dropped),
        )


def planned(job: Job, sizes: Sequence[int] = ()) -> list[RoundPlan]:
    """The plans of all rounds, as far as they are known before the run.

    A sampler that uses reports has none yet, so its cohorts will be others; their sizes are right.
    """
    planner = Planner(job, sizes)
    return [planner.plan(round_) for round_ in range(job.rounds)]


@dataclass
class _World:
    """See `schedules.base.World`."""

    job: Job
    sizes: Sequence[int]
    _history: dict[int, Seen] = field(default_factory=dict)
    _drawn: tuple[int, int] = (-1, 0)
    """the version of the newest draw, and the number of draws for it"""

    @property
    def cohort_size(self) -> int:
        return self.job.cohort_size

    def start(self, version: int, count: int, busy: Collection[int], time_s: float) -> list[Flight]:
        number = self._drawn[1] if self._drawn[0] == version else 0
        self._drawn = version, number + 1
        # The first draw for a version is the same under any schedule.
        place = ("cohort", version, number) if number else ("cohort", version)
        draw = Draw(
            round_=version,
            count=count,
            available=self._available(busy, time_s),
            num_devices=self.job.num_devices,
            rng=seeds.numpy_generator(self.job.seed, *place),
            sizes=self.sizes,
            history=self._history,
        )
        return [self._flight(device, version, time_s) for device in self._drawn_from(draw)]

    def _drawn_from(self, draw: Draw) -> tuple[int, ...]:
        """The sampler's devices. Raises ConfigError if it may not draw them."""
        sampler, there = self.job.sampler, set(draw.available)
        chosen = sampler.draw(draw)
        wrong = [device for device in chosen if type(device) is not int or device not in there]
        if wrong or len(set(chosen)) < len(chosen):
            what = f"device {wrong[0]!r}, which is not available" if wrong else "a device twice"
            raise ConfigError(
                f"sampler: {sampler.kind}: draw returned {what}; return some of draw.available, each once"
            )
        return chosen

    def learn(self, reports: Iterable[DeviceReport]) -> None:
        """Note the newest report of each device."""
        for report in reports:
            times = self._history[report.device].times if report.device in self._history else 0
            self._history[report.device] = Seen(
                report.round, report.num_samples_seen, report.train_loss, report.sim_time_s, times + 1
            )

    def _available(self, busy: Collection[int], time_s: float) -> Sequence[int]:
        everyone = range(self.job.num_devices)
        return [device for device in everyone if device not in busy] if busy else everyone

    def _flight(self, device: int, version: int, time_s: float) -> Flight:
        system = self.job.system
        share = system.share_done(self.job.seed, device, version)
        return Flight(device, version, share=share, reports=share == 1 or system.partial_work)
