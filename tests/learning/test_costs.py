"""Simulated seconds, by hand."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from fibec_ray.learning.job import System

SYSTEM = System(gflops=100, up_mbps=10, down_mbps=50)


def test_download_compute_and_upload_by_hand() -> None:
    """100 Mbit down at 50 Mbit/s: 2 s. 3e11 flops at 1e11: 3 s. 40 Mbit up at 10: 4 s."""
    seconds = SYSTEM.device_seconds(0, 0, flops=3e11, bytes_down=12_500_000, bytes_up=5_000_000)
    assert seconds == pytest.approx(9)
    assert SYSTEM.device_seconds(0, 0, 3e11, 0, 0) == pytest.approx(3)
    assert SYSTEM.device_seconds(0, 0, 0, 12_500_000, 0) == pytest.approx(2)
    assert SYSTEM.device_seconds(0, 0, 0, 0, 5_000_000) == pytest.approx(4)
    assert SYSTEM.device_seconds(0, 0, 0, 0, 0) == 0


def test_without_spread_devices_are_equal() -> None:
    assert len({SYSTEM.device_seconds(seed, k, 1e11, 1000, 1000) for seed in (0, 1) for k in range(20)}) == 1


def test_spread_makes_devices_log_normal() -> None:
    """Of 2000 devices with sigma = 1/2: the logarithm of 3 s over the seconds has mean 0 and deviation 1/2."""
    system = SYSTEM.model_copy(update={"spread": 0.5})
    logs = [math.log(3 / system.device_seconds(0, k, 3e11, 0, 0)) for k in range(2000)]
    mean = sum(logs) / 2000
    assert abs(mean) < 0.04
    assert math.sqrt(sum((x - mean) ** 2 for x in logs) / 2000) == pytest.approx(0.5, abs=0.03)


def test_a_device_keeps_its_speed_and_its_links_scale_alike() -> None:
    """The factor to a device without spread is the same for compute, download and upload, and in every round."""
    system = SYSTEM.model_copy(update={"spread": 1.0})
    work = [(1e12, 0, 0), (0, 10**7, 0), (0, 0, 10**7), (5e10, 123, 456)]
    for device in range(3):
        factors = [system.device_seconds(4, device, *w) / SYSTEM.device_seconds(4, device, *w) for w in work]
        assert factors == pytest.approx([factors[0]] * 4)
    assert len({system.device_seconds(4, device, 1e12, 0, 0) for device in range(20)}) == 20
    assert system.device_seconds(5, 0, 1e12, 0, 0) != system.device_seconds(4, 0, 1e12, 0, 0)


@pytest.mark.parametrize("field", ["gflops", "up_mbps", "down_mbps"])
def test_a_device_without_speed_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        System.model_validate({field: 0})
