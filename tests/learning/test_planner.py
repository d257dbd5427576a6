"""Planners and samplers: what a sampler learns of devices, and which draws are accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from schedules.test_plans import job

from fibec_ray.errors import ConfigError
from fibec_ray.learning.planner import Planner
from fibec_ray.reports import DeviceReport
from fibec_ray.samplers.base import Draw, Sampler
from fibec_ray.samplers.oort import Oort


def planner(sampler: Sampler) -> Planner:
    """Six devices, three in a cohort."""
    return Planner(job("sync", [1.0] * 6, 3).model_copy(update={"sampler": sampler}), [10] * 6)


@pytest.mark.parametrize("loss", [math.nan, math.inf, None])
def test_oort_goes_on_after_a_device_whose_training_diverged(loss: float | None) -> None:
    """Every device has reported once, device 0 without a usable loss."""
    one = planner(Oort(exploration=0, least_exploration=0))
    one.plan(0)
    one.learn(
        DeviceReport(round=0, device=device, num_samples=10, train_loss=1.0 if device else loss, sim_time_s=2.0)
        for device in range(6)
    )
    assert len(set(one.plan(1).cohort)) == 3


class Given(Sampler):
    """Draw the devices of a given list."""

    chosen: tuple[int, ...] = ()

    def draw(self, draw: Draw) -> tuple[int, ...]:
        return self.chosen


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ((0, 6), "draw returned device 6, which is not available"),
        ((1, 1), "draw returned a device twice"),
        ((0, 1, 2, 3), "draw returned 4 devices, more than draw.count, 3"),
    ],
)
def test_a_draw_that_is_not_allowed_is_named(chosen: Sequence[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planner(Given(chosen=tuple(chosen))).plan(0)
