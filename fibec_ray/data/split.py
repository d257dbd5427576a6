"""The result of a partition: which rows each device has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Split:
    """Row numbers, one array per device: disjoint, and together all rows."""

    train: list[NDArray[np.int64]]
    test: list[NDArray[np.int64]]
    """some may be empty"""
