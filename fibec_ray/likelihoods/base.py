"""What losses, Fisher information and Gauss-Newton matrices need of a distribution.

Shapes: B samples, C scores of a sample, R tokens of all samples' responses, V labels of a token (a vocabulary or tags).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal

from torch import Tensor

Label = Literal["observed", "expected", "sampled"]
"""The labels y in Fisher information: the data's, all of them weighted by p(y | s), or one drawn from p(y | s)."""

TOO_MANY_LABELS = "answers of several tokens have too many labels for label: expected; set label to sampled or observed"

Cotangents = tuple[int, Callable[[int], Tensor]]
"""Number of columns of L, and a function that returns the c-th one in the shape of the scores."""


class Likelihood(ABC):
    """A distribution over the labels of a sample, independent between samples."""

    name: ClassVar[str]
    """in `LIKELIHOODS` and `Answers.likelihood`"""
    num_draws: ClassVar[int] = 0
    """draws per sample that `columns` needs; 0: its columns are exact"""
    most_scores: ClassVar[int | None] = None
    """the most scores that it takes; None: any number"""

    @classmethod
    def num_labels(cls, num_scores: int) -> int | None:
        """Backward passes of the exact expectation over labels; None: there are too many labels for it."""
        return num_scores

    @classmethod
    @abstractmethod
    def num_columns(cls, num_scores: int) -> int:
        """Columns of the Gauss-Newton factor L per sample."""

    @abstractmethod
    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """(B,) -log p(labels | scores), up to a constant."""

    @abstractmethod
    def predicted(self, scores: Tensor) -> Tensor:
        """(B, ...) the likeliest labels."""

    def by_sample(self, scores: Tensor) -> Tensor:
        """(B, ...) the scores with one entry for each sample."""
        return scores

    def truth(self, labels: Tensor) -> Tensor:
        """(B, ...) the values that `predicted` is compared with."""
        return labels

    @abstractmethod
    def expected(self, scores: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Values (B,) whose squared gradients, times weights (B,) (None: 1), sum to E_y[(d log p(y | s))^2].

        Raises ModelError if there are too many labels.
        """

    @abstractmethod
    def sampled(self, scores: Tensor, draws: Tensor) -> Tensor:
        """(B,) values with the gradient of log p(y | s), or its negative, at drawn labels y.

        draws: (B,) uniform in [0, 1), one for each sample, so that labels do not depend on the batch.
        """

    @abstractmethod
    def columns(self, scores: Tensor, draws: Tensor | None = None) -> Cotangents:
        """The columns of L. draws: (B, m) uniform in [0, 1), where `num_draws` is not 0: m columns, in expectation."""

    def split(self, sizes: Sequence[int]) -> Sequence[Likelihood]:
        """The likelihoods of the first `sizes[0]` samples, of the next ones, and so on."""
        return [self] * len(sizes)

    def rows(self, sizes: Sequence[int]) -> list[int]:
        """Rows of the scores of the first `sizes[0]` samples, of the next ones, and so on."""
        return list(sizes)

    @property
    def num_tokens(self) -> Tensor | None:
        """(B,) int64 tokens that each loss is the mean over; None where samples have one label each."""
        return None
