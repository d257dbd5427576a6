"""Number and lengths of each device's samples: all that a plan needs to know about the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.dense import DenseSet
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.learning.federation import Federation

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Tokens of each device's samples and of the whole test set; 1 for each sample that is not text."""

    train: Sequence[Lengths]
    own_test: Sequence[Lengths]
    test: Lengths
    shape: tuple[int, ...] = ()
    """of a sample that is not text"""
    answer_share: float = 0.0
    """share of all tokens that come after the prompts, for text answers"""
    longest_answer: int = 0
    """most tokens after a prompt"""

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
        train, test = _lengths(federation.train), _lengths(federation.test)
        return Samples(
            [train[rows] for rows in federation.train_rows],
            [test[rows] for rows in federation.test_rows],
            test,
            federation.shape,
            *_answers([federation.train, federation.test]),
        )


def _answers(sets: Sequence[EncodedSet | DenseSet]) -> tuple[float, int]:
    found = [_lengths(held) - 1 - held.answer_at for held in sets if isinstance(held, EncodedSet)]
    if not found:
        return 0.0, 0
    behind, tokens = np.concatenate(found), sum(int(_lengths(held).sum()) for held in sets)
    return float(behind.sum() / tokens), int(behind.max())


def _lengths(held: EncodedSet | DenseSet) -> Lengths:
    return np.diff(held.offsets) if isinstance(held, EncodedSet) else np.ones(len(held.labels), np.int64)
