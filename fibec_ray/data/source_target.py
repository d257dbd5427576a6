"""Sources and targets for encoder-decoders: a source is the text up to `answer_at`, a target the tokens behind it.

They are stored as `encoded.EncodedSet` stores prompts and responses. Batches hold them apart. Shapes: B samples of a
batch, S tokens of its longest source, T of its longest target.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fibec_ray.data.encoded import ArrayShard, EncodedSet
from fibec_ray.model_types import Batch


@dataclass(frozen=True)
class SourceTargetForm:
    """What batches of sources and targets look like; implements `model_types.BatchForm`."""

    longest_answer: int
    shape: ClassVar[tuple[int, ...]] = ()

    def batch(self, num_samples: int, length: int) -> Batch:
        """Sources and targets of `length` tokens together. Targets are as long as the longest, if there is room."""
        target = max(1, min(self.longest_answer, length - 1))
        source = max(1, length - target)
        ids = torch.zeros(num_samples, source + target, dtype=torch.int64)
        ends = torch.full((num_samples,), source, dtype=torch.int64)
        return _apart(ids, ends, torch.full_like(ends, source + target), torch.zeros_like(ends), 0)


@dataclass(frozen=True)
class SourceTargetSet(EncodedSet):
    """Encoded sources and targets. Lengths are those of both together. Implements `sets.SampleSet`."""

    kind: ClassVar[str] = "source_target"

    @staticmethod
    def of(texts: EncodedSet) -> SourceTargetSet:
        """The same samples for an encoder-decoder."""
        return SourceTargetSet(**{field.name: getattr(texts, field.name) for field in fields(texts)})

    @property
    def form(self) -> SourceTargetForm:  # type: ignore[override]
        """What a batch of these samples looks like."""
        return SourceTargetForm(int(self.answer_lengths.max(initial=1)))

    def shard(self, rows: NDArray[np.int64]) -> SourceTargetShard:
        """The samples at these rows."""
        return SourceTargetShard(self, np.asarray(rows, dtype=np.int64))

    @staticmethod
    def load(folder: Path) -> SourceTargetSet:
        """Open a saved set without reading it, as `EncodedSet.load` does."""
        return SourceTargetSet.of(EncodedSet.load(folder))


class SourceTargetShard(ArrayShard):
    """Rows that one device has. Samples are cut like texts: sources lose the ends of their texts."""

    def shortened(self, max_length: int) -> SourceTargetShard:
        return SourceTargetShard(self._source, self._rows, min(max_length, self._max_length or max_length))

    def batch(self, rows: Tensor) -> Batch:
        """The samples at positions `rows` (B,) of the shard; sources and targets are right-padded."""
        whole = super().batch(rows)
        lengths = whole.inputs["attention_mask"].sum(1)
        ends = whole.inputs["answer_at"] + 1
        return _apart(whole.inputs["input_ids"], ends, lengths, whole.labels, self._source.pad_id)


def _apart(ids: Tensor, ends: Tensor, lengths: Tensor, labels: Tensor, pad_id: int) -> Batch:
    """A batch of the tokens before and behind `ends` (B,). ids: padded rows. lengths: (B,) their real tokens.

    Where S and T would be equal, targets get one more column of padding; see `model_types.Batch`.
    """
    num_source, num_target = int(ends.max()), int((lengths - ends).max())
    num_target += num_source == num_target
    source, mask = _columns(ids, torch.zeros_like(ends), ends, num_source, pad_id)
    target, target_mask = _columns(ids, ends, lengths, num_target, pad_id)
    inputs = {"input_ids": source, "attention_mask": mask, "target_ids": target, "target_mask": target_mask}
    return Batch(inputs, labels)


def _columns(ids: Tensor, starts: Tensor, ends: Tensor, count: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """(B, count) tokens of each row from `starts` to `ends` (B,), padded, and their mask."""
    at = starts.unsqueeze(1) + torch.arange(count)
    real = at < ends.unsqueeze(1)
    return ids.gather(1, at.clamp(max=ids.shape[1] - 1)).where(real, pad_id), real.long()
