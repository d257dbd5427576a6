"""Compares lists of tensors whose rounding depends on the processor."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def assert_all_near(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Equal to 1e-4 of each entry, and to 2e-5 of the largest entry of all tensors.

    Sums that cancel have few exact digits, and how few depends on the processor. No tensor may be so small beside the
    largest that it would pass whatever it is.
    """
    pairs = list(zip(found, expected, strict=True))
    near = 2e-5 * max(float(same.abs().max()) for _, same in pairs)
    for value, same in pairs:
        assert float(same.abs().max()) > 10 * near
        torch.testing.assert_close(value, same, rtol=1e-4, atol=near)
