"""The federation's data as the actors of a node see it: memory-mapped encoded sets, and each device's rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fibec_ray.data.arrays import save_array
from fibec_ray.data.sets import SampleSet, open_set
from fibec_ray.model_types import BatchForm, Shard
from fibec_ray.word_counts import word_counts

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Federation:
    """Training and test data of all devices."""

    train: SampleSet
    test: SampleSet
    train_rows: Sequence[Rows]
    """rows of `train` for each device"""
    test_rows: Sequence[Rows]
    """rows of `test` for each device"""

    @property
    def num_devices(self) -> int:
        """Number of devices."""
        return len(self.train_rows)

    @property
    def form(self) -> BatchForm:
        """What batches look like; of the set with the longer answers."""
        return max(self.train.form, self.test.form, key=lambda form: form.longest_answer)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample of numbers; () for texts."""
        return self.train.form.shape

    def num_train(self, devices: Iterable[int]) -> list[int]:
        """Number of training samples of each of some devices."""
        return [len(self.train_rows[device]) for device in devices]

    def num_test(self, devices: Iterable[int]) -> list[int]:
        """Number of test samples of each of some devices."""
        return [len(self.test_rows[device]) for device in devices]

    def train_shard(self, device: int) -> Shard:
        """A device's training samples."""
        return self.train.shard(self.train_rows[device])

    def test_shard(self, device: int) -> Shard:
        """A device's test samples."""
        return self.test.shard(self.test_rows[device])

    def test_set(self) -> Shard:
        """The whole test set."""
        return self.test.shard(np.arange(self.test.num_samples))

    @cached_property
    def word_counts(self) -> Tensor:
        """How often each token occurs in the training texts of all devices, (V,) int64."""
        return word_counts(self.train.shard(np.concatenate(self.train_rows)))

    def num_words(self, device: int) -> int:
        """Number of different tokens in a device's training texts."""
        return int(word_counts(self.train_shard(device)).count_nonzero())

    def save(self, folder: Path) -> None:
        """Write the data to a folder, for `load`."""
        self.train.save(folder / "train")
        self.test.save(folder / "test")
        _save_rows(folder / "train_rows", self.train_rows)
        _save_rows(folder / "test_rows", self.test_rows)

    @staticmethod
    def load(folder: Path) -> Federation:
        """Open saved data, memory-mapped."""
        return Federation(
            open_set(folder / "train"),
            open_set(folder / "test"),
            _load_rows(folder / "train_rows"),
            _load_rows(folder / "test_rows"),
        )


def _save_rows(stem: Path, rows: Sequence[Rows]) -> None:
    save_array(stem.with_suffix(".npy"), np.concatenate(rows) if rows else np.empty(0, np.int64))
    save_array(stem.with_suffix(".sizes.npy"), np.array([len(part) for part in rows], np.int64))


def _load_rows(stem: Path) -> list[Rows]:
    # As a plain array: slices of a memory map are ten times slower to make.
    rows = np.asarray(np.load(stem.with_suffix(".npy"), mmap_mode="r", allow_pickle=False))
    ends = np.cumsum(np.load(stem.with_suffix(".sizes.npy"), allow_pickle=False)).tolist()
    return [rows[start:end] for start, end in zip([0, *ends], ends, strict=False)]
