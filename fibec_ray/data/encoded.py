"""Token arrays on disk and in memory: one ragged, memory-mapped set for all devices, and each device's rows of it.

`encode.py` makes the set; `learning/` opens it on every node. Shapes: N samples, T tokens in all, n samples of a shard,
B samples of a batch, S tokens of the longest sample in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fibec_ray.data.arrays import load_arrays, no_set, refuse_misfit, save_arrays
from fibec_ray.model_types import NO_LABEL, Batch

_ARRAYS = ("tokens", "offsets", "labels", "answer_at", "texts")
_OPTIONAL = ("true_difficulty", "types", "tags")
_FORMER = {"grades": "true_difficulty"}
"""Names of arrays in sets that earlier releases saved"""


@dataclass(frozen=True)
class TextForm:
    """What batches of texts look like; implements `model_types.BatchForm`."""

    longest_answer: int = 0
    has_types: bool = False
    labels: tuple[str, tuple[int, ...]] = ("int64", ())
    """numpy's dtype of the labels, and the shape of one sample's"""
    has_tags: bool = False
    shape: ClassVar[tuple[int, ...]] = ()

    def batch(self, num_samples: int, length: int) -> Batch:
        """Texts of `length` tokens. Responses are as long as the longest, if the length has room for it."""
        ids = torch.zeros(num_samples, length, dtype=torch.int64)
        dtype, shape = self.labels
        labels = torch.from_numpy(np.zeros((num_samples, *shape), dtype))
        prompt = max(1, length - self.longest_answer) if self.longest_answer else 1
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.has_types:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        if self.has_tags:
            labels = torch.zeros_like(ids)
        return Batch({**inputs, "answer_at": torch.full_like(ids[:, 0], prompt - 1)}, labels)


@dataclass(frozen=True)
class EncodedSet:
    """Encoded texts with labels, as flat arrays. Implements `sets.SampleSet`."""

    tokens: NDArray[np.int32]
    """(T,) token ids of all samples, one after the other"""
    offsets: NDArray[np.int64]
    """(N + 1,): sample i is tokens[offsets[i] : offsets[i + 1]]"""
    labels: NDArray[Any]
    """(N,) int64 class ids, or float32 values; (N, C) float32 flags; with `tags` not what a model predicts"""
    answer_at: NDArray[np.int32]
    """(N,) position within the sample whose output predicts the answer; 0 with a classification head"""
    true_difficulty: NDArray[np.float32] | None
    """(N,) true difficulty, embedded task only"""
    pad_id: int
    texts: NDArray[np.uint8]
    """(T,) which text each token belongs to, 1 or 2 in order of appearance; 0: template, mask or special token"""
    types: NDArray[np.uint8] | None = None
    """(T,) transformers' token_type_ids; None if the tokenizer or the model has none, and in sets of old runs"""
    tags: NDArray[np.int64] | None = None
    """(T,) the label of each token, NO_LABEL for tokens without one; None where samples have one label each"""
    num_cut: int = 0
    """samples that were cut to the maximum length, or whose prompt was; known when the set is made, not saved"""
    num_cut_responses: int = 0
    """samples whose response was cut; the same"""
    answers_are_texts: bool = False
    """True if the tokens after `answer_at` are a response"""
    kind: ClassVar[str] = "texts"

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens per sample."""
        return np.diff(self.offsets)

    @property
    def answer_lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each response; 0 unless answers are texts."""
        behind: NDArray[np.int64] = self.lengths - 1 - self.answer_at
        return behind if self.answers_are_texts else np.zeros_like(behind)

    @property
    def form(self) -> TextForm:
        """What a batch of these samples looks like."""
        labels, longest = (self.labels.dtype.name, self.labels.shape[1:]), int(self.answer_lengths.max(initial=0))
        return TextForm(longest, self.types is not None, labels, self.tags is not None)

    def prompts(self) -> list[list[int]]:
        """Token ids of each sample up to `answer_at`."""
        starts, ends = self.offsets[:-1].tolist(), self.answer_at.tolist()
        return [self.tokens[start : start + at + 1].tolist() for start, at in zip(starts, ends, strict=True)]

    def shard(self, rows: NDArray[np.int64]) -> ArrayShard:
        """The samples at these rows."""
        return ArrayShard(self, np.asarray(rows, dtype=np.int64))

    def save(self, folder: Path) -> None:
        """Write the folder in one step: readers see the old set, none, or the new one, never a part."""
        save_arrays(folder, self.arrays(), kind=self.kind, **self.about())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays to save, by name."""
        optional = [name for name in _OPTIONAL if getattr(self, name) is not None]
        return {name: getattr(self, name) for name in (*_ARRAYS, *optional)}

    def about(self) -> dict[str, Any]:
        """The plain values to save."""
        return {"pad_id": self.pad_id, "num_samples": self.num_samples, "answers_are_texts": self.answers_are_texts}

    @staticmethod
    def load(folder: Path) -> EncodedSet:
        """Open a saved set without reading it: the arrays are memory maps, shared by all processes of a node."""
        return EncodedSet.of_arrays(folder, *load_arrays(folder))

    @staticmethod
    def of_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> EncodedSet:
        """The set with these arrays of a folder. Raises DataError if they do not fit together."""
        named = {_FORMER.get(name, name): array for name, array in arrays.items()}
        held: dict[str, Any] = {**dict.fromkeys(_OPTIONAL), **named}
        try:
            # Earlier releases did not save it. Only plans use it, and only if the model answers in text.
            texts = about.get("answers_are_texts", True)
            encoded = EncodedSet(**held, pad_id=about["pad_id"], answers_are_texts=texts)
            ends = (encoded.num_samples, len(encoded.offsets) - 1, int(encoded.offsets[-1]), len(encoded.texts))
            num_samples, num_tokens = about["num_samples"], len(encoded.tokens)
            refuse_misfit(folder, ends == (num_samples, num_samples, num_tokens, num_tokens))
            by_token = [each for each in (encoded.types, encoded.tags) if each is not None]
            refuse_misfit(folder, all(len(each) == num_tokens for each in by_token))
        except (IndexError, KeyError, TypeError) as error:
            raise no_set(folder, error) from error
        return encoded


class ArrayShard:
    """Rows of an encoded set that one device has; implements `model_types.Shard`. Keeps row numbers, not tokens.

    max_length: tokens that samples are cut to; None: no cut.
    """

    def __init__(self, source: EncodedSet, rows: NDArray[np.int64], max_length: int | None = None):
        self._source, self._rows = source, rows
        self._starts = source.offsets[rows]
        self._ends = source.offsets[rows + 1]
        self._max_length = max_length
        lengths = self._ends - self._starts
        self._kept: dict[int, NDArray[np.int64]] = {}
        """for each sample that is cut: the positions of the tokens that stay"""
        if max_length is not None:
            for row in np.flatnonzero(lengths > max_length).tolist():
                self._kept[row] = kept_tokens(self._of(source.texts, row), max_length)
                lengths[row] = len(self._kept[row])
        self.labels = torch.from_numpy(source.labels[rows])
        self.lengths = torch.from_numpy(lengths)
        self.true_difficulty = (
            None if source.true_difficulty is None else torch.from_numpy(source.true_difficulty[rows])
        )

    @property
    def num_samples(self) -> int:
        return len(self._rows)

    def shortened(self, max_length: int) -> ArrayShard:
        """The same samples cut to `max_length` tokens: the longest text loses its end first.

        Tokens outside the texts and one token of each text always stay.
        """
        return ArrayShard(self._source, self._rows, min(max_length, self._max_length or max_length))

    def batch(self, rows: Tensor) -> Batch:
        """The samples at positions `rows` (B,) of the shard, right-padded to the longest of them."""
        assert len(rows), "a batch of no samples"
        lengths = self.lengths[rows]
        attention_mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        input_ids = np.full(tuple(attention_mask.shape), self._source.pad_id, dtype=np.int64)
        answer_at = self._source.answer_at[self._rows[rows.numpy()]].astype(np.int64)
        types = None if self._source.types is None else np.zeros_like(input_ids)
        tags = None if self._source.tags is None else np.full_like(input_ids, NO_LABEL)
        for i, row in enumerate(rows.tolist()):
            tokens = self._left(self._source.tokens, row)
            if row in self._kept:
                # Count the kept tokens before it; if a prompt's last token was cut, the new last one answers.
                answer_at[i] = min(np.searchsorted(self._kept[row], answer_at[i]), len(tokens) - 1)
            input_ids[i, : len(tokens)] = tokens
            if types is not None and self._source.types is not None:
                types[i, : len(tokens)] = self._left(self._source.types, row)
            if tags is not None and self._source.tags is not None:
                tags[i, : len(tokens)] = self._left(self._source.tags, row)
        inputs = {"input_ids": torch.from_numpy(input_ids), "attention_mask": attention_mask}
        if types is not None:
            inputs["token_type_ids"] = torch.from_numpy(types)
        labels = self.labels[rows] if tags is None else torch.from_numpy(tags)
        return Batch({**inputs, "answer_at": torch.from_numpy(answer_at)}, labels)

    def _left(self, values: NDArray[Any], row: int) -> NDArray[Any]:
        """The part of (T,) values for the kept tokens of a sample."""
        own = self._of(values, row)
        return own[self._kept[row]] if row in self._kept else own

    def _of(self, values: NDArray[Any], row: int) -> NDArray[Any]:
        """The part of (T,) values for a sample."""
        return values[self._starts[row] : self._ends[row]]


def kept_tokens(texts: NDArray[np.uint8], max_length: int) -> NDArray[np.int64]:
    """Positions of the tokens that stay. Tokens are removed one at a time from the end of the longest remaining text.

    texts: (S,) the number of each token's text, 0 for tokens that always stay. Between texts of equal length the first
    is cut first. One token of each text stays, so the result may be longer than max_length.
    """
    left = np.bincount(texts)[1:].tolist()  # tokens of text 1, 2 ...
    for _ in range(len(texts) - max_length):
        most = max(left, default=0)
        if most <= 1:
            break
        left[left.index(most)] -= 1
    stays = texts == 0
    for number, count in enumerate(left, start=1):
        stays[np.flatnonzero(texts == number)[:count]] = True
    return np.flatnonzero(stays)
