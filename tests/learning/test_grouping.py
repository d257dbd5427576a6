"""Which devices share a batch, by hand."""

from __future__ import annotations

import random

import pytest

from fibec_ray.learning.planning import lane_groups


def test_devices_of_similar_size_stand_side_by_side() -> None:
    devices, sizes = [4, 7, 1, 3, 9, 0], [10, 80, 11, 79, 12, 81]
    assert lane_groups(devices, sizes, 3) == [(0, 7, 3), (9, 1, 4)]
    assert lane_groups(devices, sizes, 2) == [(0, 7), (3, 9), (1, 4)]


def test_one_lane_is_one_device_at_a_time() -> None:
    assert lane_groups([2, 0, 1], [5, 5, 9], 1) == [(1,), (0,), (2,)]


def test_groups_are_as_few_as_they_can_be_and_nearly_equal() -> None:
    """10 devices on 4 lanes: 3 + 3 + 4 keeps three groups busy, 4 + 4 + 2 would waste half of the last."""
    assert [len(group) for group in lane_groups(range(10), [1] * 10, 4)] == [3, 3, 4]
    assert lane_groups(range(3), [1] * 3, 100) == [(0, 1, 2)]
    assert lane_groups([], [], 4) == []


@pytest.mark.parametrize("lanes", [1, 2, 5, 64])
def test_the_order_of_the_cohort_does_not_matter(lanes: int) -> None:
    rng = random.Random(0)
    cohort = rng.sample(range(1000), 37)
    sizes = {device: rng.randrange(1, 6) for device in cohort}
    groups = lane_groups(cohort, [sizes[device] for device in cohort], lanes)
    rng.shuffle(cohort)
    assert lane_groups(cohort, [sizes[device] for device in cohort], lanes) == groups
    assert sorted(device for group in groups for device in group) == sorted(cohort)
    assert max(len(group) for group in groups) <= lanes
