"""What all encoded sets have in common, and how a saved one is opened. To add a kind of set, add a line to SETS."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.arrays import load_arrays
from fibec_ray.data.dense import DenseSet
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.data.images import ImageSet
from fibec_ray.data.pairs import PairSet
from fibec_ray.data.source_target import SourceTargetSet
from fibec_ray.errors import DataError
from fibec_ray.model_types import BatchForm, Shard


class SampleSet(Protocol):
    """N encoded samples on disk, as memory maps that all processes of a node share."""

    kind: ClassVar[str]
    """the set's key in SETS, saved with it"""

    @property
    def num_samples(self) -> int:
        """N."""

    @property
    def labels(self) -> NDArray[Any]:
        """(N, ...), as in `Batch`."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) positions per sample; 1 where samples have no length."""

    @property
    def answer_lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each response; 0 unless answers are texts."""

    @property
    def form(self) -> BatchForm:
        """What a batch of these samples looks like."""

    def shard(self, rows: NDArray[np.int64]) -> Shard:
        """The samples at these rows."""

    def save(self, folder: Path) -> None:
        """Write the folder in one step: readers see the old set, none, or the new one, never a part."""

    @staticmethod
    def load(folder: Path) -> SampleSet:
        """Open a saved set of this kind. Raises DataError for other folders."""


SETS: dict[str, type[SampleSet]] = {
    each.kind: each for each in (EncodedSet, SourceTargetSet, DenseSet, ImageSet, PairSet)
}


def open_set(folder: Path) -> SampleSet:
    """A saved set of any kind. Raises DataError."""
    arrays, about = load_arrays(folder)
    # Earlier releases did not save the kind.
    kind = about.get("kind", DenseSet.kind if "features" in arrays else EncodedSet.kind)
    if kind not in SETS:
        raise DataError(f"{folder}: has samples of the kind {kind}, this version reads {', '.join(SETS)}")
    return SETS[kind].load(folder)
