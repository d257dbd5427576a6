"""A toy kind of task in one file: count the vowels of a word."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from fibec_ray.data.examples import Examples
from fibec_ray.data.settings import DataConfig
from fibec_ray.seeds import numpy_generator
from fibec_ray.tasks.scores import Figures
from fibec_ray.tasks.texts import ScoredTexts
from fibec_ray.types import Predictions

LETTERS = "aeioubcdfg"


class Vowels(ScoredTexts):
    """Words of up to six letters; the answer is the number of vowels, from 0 to 6."""

    kind: Literal["vowels"] = "vowels"
    metric: Literal["off_by"] = "off_by"

    uses: ClassVar[tuple[str, ...]] = ("max_length",)

    @property
    def num_scores(self) -> int:
        return 7

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Any, Any]:
        return _words(60, seed, "train"), _words(20, seed, "test")

    def figures(self, predictions: Predictions) -> Figures:
        """How far off a count is on average, below 0 so that more is better."""
        return Figures(-float((predictions.labels - predictions.predicted).abs().double().mean()), {"words": 1.0})


def _words(count: int, seed: int, split: str) -> Examples:
    rng = numpy_generator(seed, "vowels", split)
    words = ["".join(rng.choice(list(LETTERS), rng.integers(1, 7))) for _ in range(count)]
    return Examples(words, None, np.array([sum(letter in "aeiou" for letter in word) for word in words]))
