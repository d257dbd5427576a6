"""Samples that are not text, on disk and in memory. `encoded.py` has the same for tokens.

N samples of one shape, n of a shard, B of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fibec_ray.data.arrays import load_arrays, no_set, refuse_misfit, save_arrays
from fibec_ray.data.examples import Points
from fibec_ray.model_types import Batch


@dataclass(frozen=True)
class DenseForm:
    """What batches of arrays look like; implements `model_types.BatchForm`."""

    shape: tuple[int, ...]
    """of one sample"""
    is_real: bool
    """True if labels are real values, False for classes"""
    longest_answer: ClassVar[int] = 0

    def batch(self, num_samples: int, length: int) -> Batch:
        """Arrays of zeros. length: not used, samples have none."""
        labels = torch.zeros(num_samples, dtype=torch.float32 if self.is_real else torch.int64)
        return Batch({"features": torch.zeros(num_samples, *self.shape)}, labels)


@dataclass(frozen=True)
class DenseSet:
    """Samples that are arrays of numbers, with labels. Implements `sets.SampleSet`."""

    features: NDArray[np.float32]
    """(N, *shape)"""
    labels: NDArray[Any]
    """(N,) int64 class ids, or float32 values"""
    kind: ClassVar[str] = "arrays"

    @staticmethod
    def of(points: Points) -> DenseSet:
        """The set of some points."""
        return DenseSet(points.features, points.labels if points.values is None else points.values)

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.features.shape[1:]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) ones: samples have no length."""
        return np.ones(self.num_samples, np.int64)

    @property
    def answer_lengths(self) -> NDArray[np.int64]:
        """(N,) zeros: answers are not texts."""
        return np.zeros(self.num_samples, np.int64)

    @property
    def form(self) -> DenseForm:
        """What a batch of these samples looks like."""
        return DenseForm(self.shape, np.issubdtype(self.labels.dtype, np.floating))

    def shard(self, rows: NDArray[np.int64]) -> DenseShard:
        """The samples at these rows."""
        return DenseShard(self, np.asarray(rows, dtype=np.int64))

    def save(self, folder: Path) -> None:
        """Write the arrays into a folder."""
        save_arrays(folder, {"features": self.features, "labels": self.labels}, kind=self.kind)

    @staticmethod
    def load(folder: Path) -> DenseSet:
        """Read the arrays from a folder. Raises DataError if it is not such a set."""
        arrays, _ = load_arrays(folder)
        try:
            found = DenseSet(**arrays)
        except TypeError as error:
            raise no_set(folder, error) from error
        refuse_misfit(folder, len(found.features) == len(found.labels))
        return found


class DenseShard:
    """Rows of a dense set that one device has; implements `model_types.Shard`. Keeps row numbers and labels only."""

    true_difficulty = None

    def __init__(self, source: DenseSet, rows: NDArray[np.int64]):
        self._source, self._rows = source, rows
        self.labels = torch.from_numpy(source.labels[rows])
        self.lengths = torch.zeros(len(rows), dtype=torch.int64)

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self._rows)

    def shortened(self, max_length: int) -> DenseShard:
        """Itself: samples have no length."""
        return self

    def batch(self, rows: Tensor) -> Batch:
        """The samples at positions `rows` (B,) of the shard."""
        assert len(rows), "a batch of no samples"
        features = torch.from_numpy(self._source.features[self._rows[rows.numpy()]])
        return Batch({"features": features}, self.labels[rows])
