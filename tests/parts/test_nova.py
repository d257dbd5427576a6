"""FedNova: a device's step count does not weigh (E14 for equal counts: test_aggregator.py)."""

from __future__ import annotations

import pytest
import torch

from fibec_ray.parts.aggregator.nova import Nova
from fibec_ray.types import DeviceUpdate


def test_it_is_the_formula_by_hand() -> None:
    """w = [1/4, 3/4], s = [2, 6], deltas [2, 0] and [6, 12]: s-weight .5 + 4.5 = 5, and
    [2, 0] / 2 / 4 + [6, 12] / 6 * 3 / 4 = [1, 1.5]; FedAvg would have gone to [5, 9]."""
    updates = [
        DeviceUpdate(0, 10, 2, {"w": torch.tensor([2.0, 0.0])}),
        DeviceUpdate(1, 30, 6, {"w": torch.tensor([6.0, 12.0])}),
    ]
    step, state = Nova().combine({}, iter(updates))
    assert step["w"].tolist() == pytest.approx([5.0, 7.5]) and state == {}


def test_devices_of_one_gradient_agree_however_many_steps_they_take() -> None:
    """Constant gradients g_k, rate .1: delta_k = -.1 s_k g_k. The direction is the mean gradient's, which FedAvg misses
    by far: with g = [1, 0] and [0, 1], equal weights and s = 1 and 9 it goes 9 times as far along the second."""
    gradients, counts = torch.eye(2), (1, 9)
    updates = [DeviceUpdate(k, 5, s, {"w": -0.1 * s * gradients[k]}) for k, s in enumerate(counts)]
    step, _ = Nova().combine({}, updates)
    assert step["w"].tolist() == pytest.approx([-0.1 * 5 * 0.5] * 2)  # the mean number of steps along the mean gradient
