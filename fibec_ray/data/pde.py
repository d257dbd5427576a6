"""Points of a boundary value problem, for physics-informed networks.

The stationary Fisher-KPP equation on an interval, with boundary values:

    -u'' + u (1 - u) = f

f and the boundary values are made from a known solution. The equation, the cubic solution on [0, 1] and 4 regions are
those of FIPA's published code (Chang, He, Hao, arXiv 2601.13608). The sine and all other numbers are ours.

The problem has a second solution. On [0, 1] it is far away: its highest value is 12.9, the cubic's .15. On [-1, 1] it
is near (3.8 and 2), and networks that start near 0 find that one.

A sample has the features (x, c_0, c_1, c_2) and the target y. A network u fits it if c_0 (-u'') + c_1 u + c_2 u^2 = y
at x (`models/operator_net.py`):

    interior points   c = (1, 1, -1)          y = f(x)
    boundary points   c = (0, sqrt(w), 0)     y = sqrt(w) u(x)     w: the weight of their squared error
    test points       c = (0, 1, 0)           y = u(x)

The interval is cut into regions, and a sample's label is its region. So partitions by label divide the interval:
`pathological` with one class per device gives each device its own region. Only the outer regions have boundary points.
N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator

from fibec_ray.data.examples import Points
from fibec_ray.seeds import numpy_generator

Floats = NDArray[np.float64]
RESIDUAL = (1.0, 1.0, -1.0)
"""Coefficients c of an interior point."""
VALUE = (0.0, 1.0, 0.0)
"""Coefficients c for which the score is the network's own output."""


class Solution(NamedTuple):
    """A function and its second derivative."""

    value: Callable[[Floats], Floats]
    second: Callable[[Floats], Floats]


SOLUTIONS = {
    "cubic": Solution(lambda x: x**2 * (1 - x), lambda x: 2 - 6 * x),
    "sine": Solution(lambda x: np.sin(np.pi * x), lambda x: -(np.pi**2) * np.sin(np.pi * x)),
}


class PdeSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The problem, and the regions of its interval."""

    solution: Literal["cubic", "sine"] = Field("cubic", description="cubic: x^2 (1 - x); sine: sin(pi x)")
    interval: tuple[float, float] = Field((0.0, 1.0), description="its two ends")
    regions: int = Field(4, ge=1, le=1000, description="equal parts of the interval; a sample's label is its region")
    num_train: int = Field(200, ge=2, le=1_000_000, description="interior points to draw, for all regions together")
    num_boundary: int = Field(10, ge=1, le=1_000_000, description="training rows at each end of the interval")
    boundary_weight: float = Field(
        100.0, gt=0, description="weight of a boundary row's squared error; an interior row's squared residual has 1"
    )
    num_test: int = Field(200, ge=2, le=1_000_000, description="test rows, at equal distances over the interval")

    @field_validator("interval")
    @classmethod
    def _not_empty(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"its ends are {value[0]:g} and {value[1]:g}; give the lower one first")
        return value


def generate_train(seed: int, settings: PdeSettings) -> Points:
    """Interior points, drawn uniformly, and behind them the rows of the lower and of the upper end."""
    low, high = settings.interval
    inside = numpy_generator(seed, "pde").uniform(low, high, size=settings.num_train)
    ends = np.repeat([low, high], settings.num_boundary)
    root = settings.boundary_weight**0.5
    return Points.join(
        [
            _points(inside, RESIDUAL, source(inside, settings.solution), settings),
            _points(ends, (0, root, 0), root * SOLUTIONS[settings.solution].value(ends), settings),
        ]
    )


def generate_test(settings: PdeSettings) -> Points:
    """Points at equal distances, both ends included, with the solution's values."""
    x = np.linspace(*settings.interval, settings.num_test)
    return _points(x, VALUE, SOLUTIONS[settings.solution].value(x), settings)


def asking_for_values(x: NDArray[np.float32]) -> Points:
    """Samples whose score is the network's value at the coordinates x (N, d)."""
    features = np.hstack([x, np.tile(np.array(VALUE, np.float32), (len(x), 1))])
    return Points(features, np.zeros(len(x), np.int64))


def source(x: Floats, solution: str) -> Floats:
    """f at the points x."""
    u = SOLUTIONS[solution].value(x)
    return -SOLUTIONS[solution].second(x) + u * (1 - u)


def region_of(x: Floats, settings: PdeSettings) -> NDArray[np.int64]:
    """(N,) the region of each point."""
    low, high = settings.interval
    parts = ((x - low) / (high - low) * settings.regions).astype(np.int64)
    return np.minimum(parts, settings.regions - 1)


def _points(x: Floats, coefficients: tuple[float, ...], values: Floats, settings: PdeSettings) -> Points:
    features = np.column_stack([x, np.tile(coefficients, (len(x), 1))])
    return Points(features.astype(np.float32), region_of(x, settings), values.astype(np.float32), settings.regions)
