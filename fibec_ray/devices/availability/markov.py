"""Devices that come and go by a Markov chain with a daily cycle."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import count
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fibec_ray import seeds
from fibec_ray.devices.availability.base import Availability

STEP_S = 600.0
"""The chain moves once in ten minutes."""
DAY_S = 86_400.0
STEPS = int(DAY_S / STEP_S)
LONGEST_WAIT_DAYS = 366
"""A device that is away for longer counts as gone for good."""


class Rates(NamedTuple):
    """What a chain's probabilities depend on, in the units of the settings."""

    hours_on: float
    hours_off: float
    daily: float
    peak_hour: float


class Markov(Availability):
    """A chain with two states, on and off, for each device; phones come online at night.

    In each step of 10 minutes, a device that is off comes on with probability (step / hours_off) (1 + daily c), and one
    that is on goes off with probability (step / hours_on) (1 - daily c), where c = cos(2 pi (hour - peak_hour) / 24).
    All devices are in one time zone. The run begins at midnight, when the chains have already run for a long time.

    Bonawitz et al. (MLSys 2019) report four times as many phones in training at night as during the day, for one
    population in one time zone. With the defaults between about 10 % and 45 % of the devices are on
    (tests/devices/test_availability.py counts them). Ours: the form of the cycle and the mean times.
    """

    kind: Literal["markov"] = "markov"
    hours_on: float = Field(2.0, ge=0.5, le=1000, description="mean hours that a device stays on, without the cycle")
    hours_off: float = Field(6.0, ge=0.5, le=1000, description="mean hours that a device stays off, without the cycle")
    daily: float = Field(0.45, ge=0, le=1, description="strength of the daily cycle; 0: none")
    peak_hour: float = Field(2.0, ge=0, lt=24, description="hour of the day with the most devices coming on")

    def available(self, seed: int, device: int, time_s: float) -> bool:
        step = math.floor(time_s / STEP_S)
        return bool(self._day(seed, device, step // STEPS)[step % STEPS])

    def available_from(self, seed: int, device: int, time_s: float) -> float:
        first = math.floor(time_s / STEP_S)
        if self.available(seed, device, time_s):
            return time_s
        for day in range(first // STEPS, first // STEPS + LONGEST_WAIT_DAYS):
            on = np.flatnonzero(self._day(seed, device, day)[max(0, first - day * STEPS) :])
            if len(on):
                return float(max(first, day * STEPS) + on[0]) * STEP_S
        return math.inf

    def _day(self, seed: int, device: int, day: int) -> npt.NDArray[np.bool_]:
        return _states(Rates(self.hours_on, self.hours_off, self.daily, self.peak_hour), seed, device, day)


@lru_cache(maxsize=65_536)
def _states(rates: Rates, seed: int, device: int, day: int) -> npt.NDArray[np.bool_]:
    """(STEPS,) whether the device is on, in each step of a day."""
    known = _decided(rates, seed, device, day)
    last = np.maximum.accumulate(np.where(known != STAYS, np.arange(STEPS), -1))  # the last decided step so far
    before = OFF if last[0] >= 0 else _last_before(rates, seed, device, day)
    return np.where(last >= 0, known[last], before) == ON


def _last_before(rates: Rates, seed: int, device: int, day: int) -> int:
    """The state at the end of the day before: that of the last step that decides it alone."""
    for before in count(day - 1, -1):
        known = _decided(rates, seed, device, before)
        decided = known[known != STAYS]
        if len(decided):
            return int(decided[-1])
    raise AssertionError("some step decides")


OFF, ON, STAYS = 0, 1, 2


def _decided(rates: Rates, seed: int, device: int, day: int) -> npt.NDArray[np.int64]:
    """(STEPS,) what each step of a day makes of the device, whatever it was before: OFF or ON, or it STAYS as it was.

    One uniform draw decides for both states: a device is on after a step if the draw is below its probability of being
    on. Below both probabilities it is on, above both it is off, and between them it stays. So a state needs no history
    beyond the last decided step, also before the run began.
    """
    draws = seeds.numpy_generator(seed, "availability", device, day).random(STEPS)
    comes_on, stays_on = _probabilities(rates)
    return np.where(draws < comes_on, ON, np.where(draws < stays_on, STAYS, OFF))


@lru_cache(maxsize=64)
def _probabilities(rates: Rates) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(STEPS,) probabilities of being on after a step, for a device that is off and for one that is on."""
    step_h = STEP_S / 3600
    hours = (np.arange(STEPS) + 0.5) * step_h
    cycle = rates.daily * np.cos(2 * np.pi * (hours - rates.peak_hour) / 24)
    return step_h / rates.hours_off * (1 + cycle), 1 - step_h / rates.hours_on * (1 - cycle)
