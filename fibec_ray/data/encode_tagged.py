"""Encodes words with tags as tokens with labels.

    [CLS] Peter Black lives in Lima [SEP]        words
          B-PER I-PER O     O  B-LOC             tags

A word's tag is the label of its first token; its other tokens and special tokens have no label. A sample that is too
long loses its last tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fibec_ray.data.encode import CHUNK, Sample, pack
from fibec_ray.data.encoded import EncodedSet, kept_tokens
from fibec_ray.data.tagged import Tagged
from fibec_ray.errors import DataError
from fibec_ray.model_types import NO_LABEL


def encode_tagged(rows: Tagged, tokenizer: Any, task: str, max_length: int) -> EncodedSet:
    """Encode all rows, at most `max_length` tokens each. tokenizer: a fast one of transformers. task: for messages.

    Raises DataError for a slow tokenizer, and for words without a token.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"task {task}: needs a fast tokenizer (tokenizer.json beside the model), which says which word a token "
            "belongs to; set backbone.tokenizer to another one"
        )
    tags: list[int] = []

    def samples(part: Tagged) -> Iterator[Sample]:
        for sample, labels in _samples(part, tokenizer, task, max_length):
            tags.extend(labels)
            yield sample

    starts = range(0, len(rows), CHUNK)
    parts = (rows.take(np.arange(start, min(start + CHUNK, len(rows)))) for start in starts)
    made = pack((samples(part) for part in parts), rows.labels, rows.true_difficulty, tokenizer)
    return replace(made, tags=np.array(tags, dtype=np.int64))


def _samples(rows: Tagged, tokenizer: Any, task: str, max_length: int) -> Iterator[tuple[Sample, list[int]]]:
    """Each row's sample, and the labels of its tokens."""
    encoded = _tokenised(rows, tokenizer, task)
    for i, ids in enumerate(encoded["input_ids"]):
        word_of = encoded.word_ids(i)
        labels = [NO_LABEL if word is None else rows.tags[i][word] for word in _first_tokens(word_of)]
        texts = [int(word is not None) for word in word_of]
        kept = kept_tokens(np.array(texts, dtype=np.uint8), max_length).tolist()
        types = encoded["token_type_ids"][i] if "token_type_ids" in encoded else None
        sample = Sample(
            [ids[at] for at in kept],
            [texts[at] for at in kept],
            answer_at=0,
            types=None if types is None else [types[at] for at in kept],
            is_cut=len(kept) < len(ids),
        )
        yield sample, [labels[at] for at in kept]


def _tokenised(rows: Tagged, tokenizer: Any, task: str) -> Any:
    """The tokenizer's output, with a token for each word.

    Words without one, such as control characters, are read as unknown words. Byte-level tokenizers get words with a
    space before them, because they write a word in a text with other tokens than a word alone.
    """
    before = " " if _tells_spaces(tokenizer) else ""
    words = [[f"{before if at else ''}{word}" for at, word in enumerate(row)] for row in rows.words]
    encoded = _encoded(words, tokenizer)
    lost = list(_without_token(encoded, words))
    if lost and tokenizer.unk_token is not None:
        for i, at in lost:
            words[i][at] = tokenizer.unk_token
        encoded = _encoded(words, tokenizer)
        lost = list(_without_token(encoded, words))
    for i, at in lost:
        where = f"task {task}" if rows.origin is None else rows.origin.place(i)
        raise DataError(
            f"{where}: word {at}, {rows.words[i][at]!r:.60}, has no token for this tokenizer; replace the word, or "
            "remove it and its tag"
        )
    return encoded


def _encoded(words: Sequence[Sequence[str]], tokenizer: Any) -> Any:
    return tokenizer(words, is_split_into_words=True, padding=False, truncation=False, verbose=False)


def _without_token(encoded: Any, words: Sequence[Sequence[str]]) -> Iterator[tuple[int, int]]:
    """Row and position of words that have no token."""
    for i, row in enumerate(words):
        found = set(encoded.word_ids(i))
        yield from ((i, at) for at in range(len(row)) if at not in found)


def _first_tokens(word_of: Sequence[int | None]) -> list[int | None]:
    """[None, 0, 0, 1, None] -> [None, 0, None, 1, None]: each word at its first token only."""
    before = [None, *word_of[:-1]]
    return [word if word != previous else None for word, previous in zip(word_of, before, strict=True)]


def _tells_spaces(tokenizer: Any) -> bool:
    """True for tokenizers that write a space and the word behind it as one token, and that add no space themselves."""
    alone, spaced = tokenizer([["a"], [" a"]], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return len(alone) == len(spaced) == 1 and alone != spaced
