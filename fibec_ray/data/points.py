"""Embedded samples that are not text: images of digits, and a regression. Neither needs a network.

Digits: Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI, 1998), the test part that ships with
scikit-learn: 1,797 images of 8 x 8 pixels.

Regression: a function on [-1, 1]^d. The domain is cut into regions, and a sample's label is its region. So partitions
by label divide the domain: `pathological` with one class per device gives each device its own region. N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from fibec_ray.data.examples import Points
from fibec_ray.seeds import numpy_generator

NUM_TEST = 360
"""A fifth of the images. The set has no split, so ours depends on the seed."""


def load_digits(seed: int) -> tuple[Points, Points]:
    """(train, test), disjoint: images (1, 8, 8) with pixels in [0, 1]."""
    from sklearn import datasets  # heavy, and device actors never need it

    found = datasets.load_digits()
    images = (found.images[:, None] / 16).astype(np.float32)
    points = Points(images, found.target.astype(np.int64))
    rows = numpy_generator(seed, "digits").permutation(len(points))
    return points.take(np.sort(rows[NUM_TEST:])), points.take(np.sort(rows[:NUM_TEST]))


Floats = NDArray[np.float64]


class RegressionSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The function and the regions of its domain. d: the number of axes."""

    function: Literal["wave", "linear"] = Field(
        "wave",
        description="wave: the product over axes j = 0, 1 .. of sin(pi x_j + pi j / 2); linear: sum_j (-1)^j x_j / 2^j",
    )
    regions: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(
        (2, 3), min_length=1, max_length=16, description="equal cells along each axis: [4] is four intervals, d = 1"
    )
    noise: float = Field(
        0.1, ge=0, allow_inf_nan=False, description="standard deviation of the noise on training values"
    )
    num_train: int = Field(600, ge=2, le=1_000_000, description="training rows to generate")
    num_test: int = Field(600, ge=2, le=1_000_000, description="test rows to generate")

    @property
    def num_regions(self) -> int:
        """Number of regions of the plane."""
        return int(np.prod(self.regions))


def generate(num_samples: int, seed: int, split: str, settings: RegressionSettings) -> Points:
    """Draw points uniformly from the domain; `train` values have noise, `test` values none."""
    assert split in ("train", "test"), split
    rng = numpy_generator(seed, "regression", split)
    x = rng.uniform(-1, 1, size=(num_samples, len(settings.regions)))
    values = FUNCTIONS[settings.function](x)
    if split == "train":
        values = values + settings.noise * rng.standard_normal(num_samples)
    regions = region_of(x, settings.regions)
    return Points(x.astype(np.float32), regions, values.astype(np.float32), settings.num_regions)


def region_of(x: Floats, regions: tuple[int, ...]) -> NDArray[np.int64]:
    """(N,) the region of each point (N, d); the last axis counts fastest."""
    cuts = np.array(regions)
    cells = np.minimum(((x + 1) / 2 * cuts).astype(np.int64), cuts - 1)
    return np.ravel_multi_index(tuple(cells.T), regions).astype(np.int64)


FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "wave": lambda x: np.sin(np.pi * (x + np.arange(x.shape[1]) / 2)).prod(1),
    "linear": lambda x: x @ (-0.5) ** np.arange(x.shape[1]),
}
