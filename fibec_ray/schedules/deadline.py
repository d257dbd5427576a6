"""Rounds with a deadline and more devices than needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from fibec_ray.parts.part import Need
from fibec_ray.schedules.base import Flight, Schedule, Step, World


class Deadline(Schedule):
    """Start over_commit x cohort_size devices; a round ends with the first cohort_size updates, or at its deadline.

    Over-commitment as in Bonawitz et al. (MLSys 2019); FedScale (Lai et al., ICML 2022) starts 1.3 times as many. With
    over_commit 1 and no deadline every round waits for its cohort, as with `sync`.
    """

    kind: Literal["deadline"] = "deadline"
    over_commit: float = Field(1.3, ge=1, le=100, description="devices that start, relative to cohort_size")
    deadline_s: float | None = Field(
        None, gt=0, description="virtual seconds from the start of a round to its end; null: no limit"
    )
    quantile: float | None = Field(
        None,
        gt=0,
        le=1,
        description="the deadline, as a quantile of the predicted seconds of the devices that start; null: no limit",
    )
    late: Literal["drop", "next_round"] = Field(
        "drop",
        description="updates that arrive after the end of their round. drop: they do not count; next_round: they "
        "count in the round in which they arrive, beside its own",
    )

    needs_times: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_deadline(self) -> Deadline:
        if self.deadline_s is not None and self.quantile is not None:
            raise ValueError("deadline_s and quantile both set the deadline; leave out one of them")
        if self.late != "drop" and not self._has_late_work:
            raise ValueError(
                f"late: {self.late} has no effect with over_commit 1 and no deadline, where no device is late; leave "
                "it out, or set deadline_s"
            )
        return self

    @property
    def _has_late_work(self) -> bool:
        return self.over_commit > 1 or self.deadline_s is not None or self.quantile is not None

    @property
    def lacks(self) -> tuple[Need, ...]:
        return ("fresh",) if self.late == "next_round" else ()

    def unfit_for_cohorts(self, cohort_size: int, num_devices: int) -> str | None:
        if (count := self.num_started(cohort_size)) > num_devices:
            return (
                f"over_commit {self.over_commit:g} starts {count} devices for cohort_size {cohort_size}, but "
                f"num_devices is {num_devices}; lower over_commit or cohort_size"
            )
        return None

    def num_started(self, cohort_size: int) -> int:
        """Devices that start in a round."""
        return math.ceil(self.over_commit * cohort_size - 1e-9)

    def steps(self, world: World) -> Iterator[Step]:
        version, time_s, late = 0, 0.0, list[Flight]()
        count = self.num_started(world.cohort_size)
        while True:
            flights = world.start(version, count, {flight.device for flight in late}, time_s)
            time_s = flights[0].start_s if flights else time_s
            first, time_s = self._first(flights, world.cohort_size, time_s)
            counted = [flight for flight in flights if flight.device in first]
            arrived = [flight for flight in late if flight.arrival_s <= time_s]
            waiting = [flight for flight in late if flight.arrival_s > time_s]
            out = [flight for flight in flights if flight.device not in first]
            dropped = [flight for flight in out if not self._may_be_late(flight)]
            late = [*waiting, *(flight for flight in out if self._may_be_late(flight))]
            yield Step([*arrived, *counted], dropped, late, time_s)
            version += 1

    def _may_be_late(self, flight: Flight) -> bool:
        return self.late == "next_round" and flight.reports

    def _first(self, flights: Sequence[Flight], count: int, time_s: float) -> tuple[set[int], float]:
        """The devices of the flights that count, and the time at which the round ends."""
        end = self._deadline(flights, time_s)
        coming = sorted((each.arrival_s, each.device) for each in flights if each.reports and each.arrival_s <= end)
        if len(coming) >= count:
            end = coming[count - 1][0]
        elif len(coming) == len(flights) or end == math.inf:
            end = max([time_s, *(each.arrival_s for each in flights)])
        return {device for _, device in coming[:count]}, end

    def _deadline(self, flights: Sequence[Flight], time_s: float) -> float:
        if self.quantile is not None and flights:
            ordered = sorted(flight.arrival_s for flight in flights)
            return ordered[math.ceil(self.quantile * len(ordered) - 1e-9) - 1]
        return math.inf if self.deadline_s is None else time_s + self.deadline_s
