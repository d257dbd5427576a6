"""Encoded pairs of responses: the chosen and the rejected ones as two sets of texts with the same rows.

Shapes: N samples, n samples of a shard, B samples of a batch, S tokens of the longest text in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.data.arrays import load_arrays, no_set, refuse_misfit, save_arrays
from fibec_ray.data.encoded import ArrayShard, EncodedSet, TextForm
from fibec_ray.model_types import Batch

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class PairForm:
    """What batches of pairs look like; implements `model_types.BatchForm`."""

    longest_answer: int = 0
    shape: ClassVar[tuple[int, ...]] = ()

    def batch(self, num_samples: int, length: int) -> Batch:
        """Pairs of texts of `length` / 2 tokens each."""
        texts = TextForm(self.longest_answer).batch(2 * num_samples, max(1, -(-length // 2)))
        inputs = {name: column.unflatten(0, (num_samples, 2)) for name, column in texts.inputs.items()}
        return Batch(inputs, torch.ones(num_samples, 1, dtype=torch.int64))


@dataclass(frozen=True)
class PairSet:
    """Two texts per sample, each a prompt with a response. Implements `sets.SampleSet`."""

    chosen: EncodedSet
    """with the better responses; labels (N, 1) are 1"""
    rejected: EncodedSet
    """the same prompts with the worse responses"""
    num_cut: int = 0
    """samples whose prompt was cut; known when the set is made, not saved"""
    num_cut_responses: int = 0
    """samples with a response that was cut; the same"""
    kind: ClassVar[str] = "pairs"
    types: ClassVar[None] = None
    """decoders have no token types"""

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return self.chosen.num_samples

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N, 1) ones: the first response is the better one."""
        return self.chosen.labels

    @property
    def tokens(self) -> NDArray[np.int32]:
        """(T,) token ids of all texts."""
        return np.concatenate([self.chosen.tokens, self.rejected.tokens])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) twice the tokens of the longer text, because both are padded to it."""
        return 2 * np.maximum(self.chosen.lengths, self.rejected.lengths)

    @property
    def answer_lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of both responses together."""
        return self.chosen.answer_lengths + self.rejected.answer_lengths

    @property
    def form(self) -> PairForm:
        """What a batch of these samples looks like."""
        return PairForm(max(int(part.answer_lengths.max(initial=0)) for part in (self.chosen, self.rejected)))

    def prompts(self) -> list[list[int]]:
        """Token ids of each sample's prompt."""
        return self.chosen.prompts()

    def shard(self, rows: NDArray[np.int64]) -> PairShard:
        """The samples at these rows."""
        return PairShard(self.chosen.shard(rows), self.rejected.shard(rows), self.chosen.pad_id)

    def save(self, folder: Path) -> None:
        """Write the folder in one step: readers see the old set, none, or the new one, never a part."""
        parts = {side: getattr(self, side) for side in SIDES}
        arrays = {f"{side}_{name}": array for side, part in parts.items() for name, array in part.arrays().items()}
        save_arrays(folder, arrays, kind=self.kind, num_samples=self.num_samples, pad_id=self.chosen.pad_id)

    @staticmethod
    def load(folder: Path) -> PairSet:
        """Open a saved set without reading it: the arrays are memory maps, shared by all processes of a node."""
        arrays, about = load_arrays(folder)
        try:
            plain = {"pad_id": about["pad_id"], "num_samples": about["num_samples"], "answers_are_texts": True}
        except KeyError as error:
            raise no_set(folder, error) from error
        chosen, rejected = (EncodedSet.of_arrays(folder, _of_side(arrays, side), plain) for side in SIDES)
        refuse_misfit(folder, chosen.num_samples == rejected.num_samples)
        return PairSet(chosen, rejected)


class PairShard:
    """Rows of a set of pairs that one device has; implements `model_types.Shard`.

    chosen, rejected: the same rows of both sets. pad_id: token id of padding.
    """

    def __init__(self, chosen: ArrayShard, rejected: ArrayShard, pad_id: int):
        self._chosen, self._rejected, self._pad_id = chosen, rejected, pad_id
        self.labels: Tensor = chosen.labels
        self.lengths: Tensor = 2 * torch.maximum(chosen.lengths, rejected.lengths)
        self.true_difficulty: Tensor | None = chosen.true_difficulty

    @property
    def num_samples(self) -> int:
        return self._chosen.num_samples

    def shortened(self, max_length: int) -> PairShard:
        """The same samples cut to `max_length` tokens, half of them for each text. Only prompts lose tokens."""
        half = max(1, max_length // 2)
        return PairShard(self._chosen.shortened(half), self._rejected.shortened(half), self._pad_id)

    def batch(self, rows: Tensor) -> Batch:
        """The samples at positions `rows` (B,) of the shard: inputs (B, 2, S), the chosen response first."""
        sides = [shard.batch(rows).inputs for shard in (self._chosen, self._rejected)]
        length = max(side["input_ids"].shape[1] for side in sides)
        pads = {"input_ids": self._pad_id}
        inputs = {
            name: torch.stack([_wide(side[name], length, pads.get(name, 0)) for side in sides], dim=1)
            for name in sides[0]
        }
        return Batch(inputs, self.labels[rows])


def _wide(column: Tensor, length: int, value: int) -> Tensor:
    """(B, S') -> (B, S); (B,) stays."""
    return column if column.dim() == 1 else F.pad(column, (0, length - column.shape[1]), value=value)


def _of_side(arrays: dict[str, Any], side: str) -> dict[str, Any]:
    start = f"{side}_"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
