"""Rows of words with a tag each, and the entities in BIO tags.

The first word of an entity of type PER has the tag B-PER, its other words I-PER, and words outside of entities O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.examples import Origin, Rows

OUTSIDE = "O"
"""The tag of words that belong to no entity."""


@dataclass(frozen=True)
class Tagged(Rows):
    """Words with a tag each."""

    words: list[list[str]]
    tags: list[list[int]]
    """positions in the task's label_names, one for each word"""
    labels: NDArray[np.int64]
    """(N,) the most frequent type of entity, as a position in `entity_types`"""
    true_difficulty: NDArray[np.float32] | None = None
    """(N,) true difficulty in [0, 1]; known for generated rows only"""
    users: list[str] | None = None
    """N ids of users, if the partition deals by them"""
    origin: Origin | None = None
    """None for generated rows"""

    def texts(self) -> list[str]:
        """The words of each row, with spaces between them."""
        return [" ".join(words) for words in self.words]

    @property
    def all_tags(self) -> NDArray[np.int64]:
        """The tags of all words, row by row."""
        return np.array([tag for tags in self.tags for tag in tags], dtype=np.int64)

    @property
    def row_of_each(self) -> NDArray[np.int64]:
        """The row that each of `all_tags` belongs to."""
        return np.repeat(np.arange(len(self)), [len(tags) for tags in self.tags])


class Span(NamedTuple):
    """An entity: words `start` to `end` - 1 of a row."""

    type: str
    start: int
    end: int


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of one row in BIO tags.

    An entity starts at B, and also at an I behind O or behind another type, as in the CoNLL-2000 evaluation.
    """
    found: list[Span] = []
    open_, start = "", 0
    for at, tag in enumerate([*tags, OUTSIDE]):
        type_ = "" if tag == OUTSIDE else tag[2:]
        if tag.startswith("B-") or type_ != open_:
            if open_:
                found.append(Span(open_, start, at))
            open_, start = type_, at
    return found


def entity_types(label_names: Sequence[str]) -> tuple[str, ...]:
    """Types of entities in the order of label_names; other tags are types of their own, and OUTSIDE is the last."""
    named = [name[2:] if name[:2] in ("B-", "I-") else name for name in label_names]
    return (*dict.fromkeys(name for name in named if name != OUTSIDE), OUTSIDE)


def most_frequent_types(tags: Sequence[Sequence[int]], label_names: Sequence[str]) -> NDArray[np.int64]:
    """(N,) the type with the most entities in each row, as a position in `entity_types` (ties: the first).

    Tags that are not BIO count word by word. Rows without entities have the last position.
    """
    types = entity_types(label_names)
    starts = [
        len(types) - 1 if name == OUTSIDE or name.startswith("I-") else types.index(name.removeprefix("B-"))
        for name in label_names
    ]
    counts = [np.bincount([starts[tag] for tag in row], minlength=len(types))[:-1] for row in tags]
    return np.array([each.argmax() if each.any() else len(types) - 1 for each in counts], dtype=np.int64)
