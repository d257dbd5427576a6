"""Token arrays on disk and in memory: one ragged set for all devices, memory-mapped, and each device's rows of it.

`encode.py` makes the set, `learning/` opens it on every node. N samples, T tokens in all, n samples of a shard, B of a
batch, S tokens of the longest in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fibec_ray.data.arrays import load_arrays, no_set, refuse_misfit, save_arrays
from fibec_ray.types import Batch

_ARRAYS = ("tokens", "offsets", "labels", "answer_at")


@dataclass(frozen=True)
class EncodedSet:
    tokens: NDArray[np.int32]
    """(T,) token ids of all samples, one after the other"""
    offsets: NDArray[np.int64]
    """(N + 1,): sample i is tokens[offsets[i] : offsets[i + 1]]"""
    labels: NDArray[np.int64]
    """(N,) class ids"""
    answer_at: NDArray[np.int32]
    """(N,) position within the sample whose output predicts the answer; 0 with a classification head"""
    grades: NDArray[np.float32] | None
    """(N,) true difficulty, embedded task only"""
    pad_id: int

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    def shard(self, rows: NDArray[np.int64]) -> ArrayShard:
        return ArrayShard(self, np.asarray(rows, dtype=np.int64))

    def save(self, folder: Path) -> None:
        """Writes the folder in one step: readers see the old set, none, or this one, never half of it."""
        names = [*_ARRAYS, *(["grades"] if self.grades is not None else [])]
        arrays = {name: getattr(self, name) for name in names}
        save_arrays(folder, arrays, pad_id=self.pad_id, num_samples=self.num_samples)

    @staticmethod
    def load(folder: Path) -> EncodedSet:
        """Opens a saved set without reading it: the arrays are memory maps, shared by all processes of a node."""
        arrays, about = load_arrays(folder)
        grades = arrays.pop("grades", None)
        try:
            encoded = EncodedSet(**arrays, grades=grades, pad_id=about["pad_id"])
            ends = (encoded.num_samples, len(encoded.offsets) - 1, int(encoded.offsets[-1]))
            refuse_misfit(folder, ends == (about["num_samples"], about["num_samples"], len(encoded.tokens)))
        except (IndexError, KeyError, TypeError) as error:
            raise no_set(folder, error) from error
        return encoded


class ArrayShard:
    """Some rows of an encoded set; implements `types.Shard`. Holds row numbers, not tokens."""

    def __init__(self, source: EncodedSet, rows: NDArray[np.int64]):
        self._source, self._rows = source, rows
        self._starts = source.offsets[rows]
        self._ends = source.offsets[rows + 1]
        self.labels = torch.from_numpy(source.labels[rows])
        self.lengths = torch.from_numpy(self._ends - self._starts)
        self.grades = None if source.grades is None else torch.from_numpy(source.grades[rows])

    @property
    def num_samples(self) -> int:
        return len(self._rows)

    def batch(self, rows: Tensor) -> Batch:
        """The samples at positions `rows` (B,) of the shard, right-padded to the longest of them."""
        assert len(rows), "a batch of no samples"
        lengths = self.lengths[rows]
        attention_mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        input_ids = np.full(tuple(attention_mask.shape), self._source.pad_id, dtype=np.int64)
        for i, row in enumerate(rows.tolist()):
            tokens = self._source.tokens[self._starts[row] : self._ends[row]]
            input_ids[i, : len(tokens)] = tokens
        answer_at = torch.from_numpy(self._source.answer_at[self._rows[rows.numpy()]].astype(np.int64))
        return Batch(torch.from_numpy(input_ids), attention_mask, self.labels[rows], answer_at)
