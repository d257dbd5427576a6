"""Compares lists of tensors whose rounding depends on the processor."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def assert_all_near(found: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float = 1e-4) -> None:
    """Equal up to a part of each tensor's largest entry, and of a hundredth of the largest of all.

    Sums that cancel have few exact digits, and how few depends on the processor.
    """
    pairs = list(zip(found, expected, strict=True))
    largest = max(float(same.abs().max()) for _, same in pairs)
    for value, same in pairs:
        size = max(float(same.abs().max()), 1e-2 * largest)
        torch.testing.assert_close(value, same, rtol=0, atol=tolerance * size)
