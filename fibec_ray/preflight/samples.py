"""Number, lengths and words of each device's samples: all that a plan needs to know about the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.encoded import TextForm
from fibec_ray.learning.federation import Federation
from fibec_ray.model_types import BatchForm

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Tokens of each device's samples and of the whole test set; 1 for each sample that is not text."""

    train: Sequence[Lengths]
    own_test: Sequence[Lengths]
    test: Lengths
    form: BatchForm = TextForm()
    """what batches look like"""
    answer_share: float = 0.0
    """share of all tokens that are part of a response; 0 unless answers are texts"""
    num_words: Callable[[int], int] = lambda device: 0
    """number of different tokens in a device's training texts"""

    @property
    def sizes(self) -> list[int]:
        """Training samples of each device."""
        return [len(lengths) for lengths in self.train]

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return int(max(self.test.max(initial=1), max(part.max(initial=1) for part in self.train)))

    @property
    def are_alike(self) -> bool:
        """True for text samples that all have the same number of tokens."""
        lengths = {int(end) for part in (*self.train, self.test) if len(part) for end in (part.min(), part.max())}
        return lengths == {self.longest} and self.longest > 1

    @staticmethod
    def of(federation: Federation) -> Samples:
        """The samples of a federation."""
        train, test = federation.train.lengths, federation.test.lengths
        answers = federation.train.answer_lengths.sum() + federation.test.answer_lengths.sum()
        return Samples(
            [train[rows] for rows in federation.train_rows],
            [test[rows] for rows in federation.test_rows],
            test,
            federation.form,
            float(answers / (train.sum() + test.sum())),
            federation.num_words,
        )
