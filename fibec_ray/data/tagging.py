"""Generates words with tags: the messages of the embedded task (`synthetic.py`), with their slots as entities.

    Will    it rain in Oak     Harbor  tonight ?
    O       O  O    O  B-PLACE I-PLACE B-TIME  O

True difficulty is that of the messages: more sentences, a negation or another topic make it harder. A message with
a wrong tag (label noise) has difficulty 1. Training and test messages have different times.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field

from fibec_ray.data.grammar import TOPICS, Topic
from fibec_ray.data.sentences import TIMES_OF, drawn_slots
from fibec_ray.data.synthetic import Features, compose, draw_features
from fibec_ray.data.tagged import OUTSIDE, Tagged, most_frequent_types, spans
from fibec_ray.errors import DataError
from fibec_ray.seeds import numpy_generator

SLOTS = ("place", "name", "thing", "time")
LABEL_NAMES = (OUTSIDE, *(f"{part}-{slot.upper()}" for slot in SLOTS for part in "BI"))
"""Tags of generated rows. TIME is last: each message has one, and other entities decide how a row is dealt."""
_WORDS = re.compile(r"'\w+|\w+(?:[-']\w+)*|[^\w\s]")
_MAX_REDRAWS = 1000
Tokens = list[tuple[str, str]]
"""Words with their tags."""


class TaggingSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Number and difficulty of the messages."""

    num_train: int = Field(800, ge=2, le=50_000, description="training rows to generate")
    num_test: int = Field(200, ge=1, le=10_000, description="test rows to generate")
    label_noise: float = Field(
        0.0, ge=0, lt=1, description="fraction of training messages in which one entity has a wrong type"
    )
    hard_fraction: float = Field(
        0.6, ge=0, le=1, description="fraction of messages that negate another topic, mention one first, or both"
    )


def generate(num_samples: int, seed: int, split: str, settings: TaggingSettings) -> Tagged:
    """Generate `num_samples` distinct messages of one split ("train" or "test"); topics are balanced to within one.

    Raises DataError if the grammar has too few messages.
    """
    assert split in ("train", "test"), split
    rng = numpy_generator(seed, "tagging", split)
    topics = rng.permutation(np.arange(num_samples) % len(TOPICS))
    features = [draw_features(rng, settings.hard_fraction) for _ in range(num_samples)]
    found: dict[tuple[str, ...], Tokens] = {}
    for topic, wanted in zip(topics.tolist(), features, strict=True):
        message = _new_message(topic, wanted, rng, split, found)
        found[tuple(word for word, _ in message)] = message
    rows = list(found.values())
    difficulty = np.array([each.grade for each in features], dtype=np.float32)
    noisy = rng.permutation(num_samples)[: round((settings.label_noise if split == "train" else 0) * num_samples)]
    for row in noisy.tolist():
        rows[row], difficulty[row] = _with_wrong_type(rows[row], rng), 1.0
    tags = [[LABEL_NAMES.index(tag) for _, tag in row] for row in rows]
    words = [[word for word, _ in row] for row in rows]
    return Tagged(words, tags, most_frequent_types(tags, LABEL_NAMES), difficulty)


def _new_message(
    topic: int, features: Features, rng: np.random.Generator, split: str, seen: dict[tuple[str, ...], Tokens]
) -> Tokens:
    for _ in range(_MAX_REDRAWS):  # bounded: an exhausted grammar ends in an error
        message = _write(topic, features, rng, TIMES_OF[split])
        if tuple(word for word, _ in message) not in seen:
            return message
    raise DataError(
        f"data.tagging: the grammar has no more new messages for {split} rows; lower data.tagging.num_{split}"
    )


def _write(topic: int, features: Features, rng: np.random.Generator, times: tuple[str, ...]) -> Tokens:
    def fill(pattern: str, of: Topic) -> Tokens:
        return _filled(pattern, drawn_slots(pattern, of, rng, times))

    opener, sentences = compose(topic, features, rng, len(TOPICS), fill)
    return [*_outside(opener), *(token for sentence in sentences for token in sentence)]


def _filled(pattern: str, phrases: dict[str, str]) -> Tokens:
    """A sentence with phrases in its slots. Its first letter is a capital."""
    found: Tokens = []
    for text, slot, _, _ in string.Formatter().parse(pattern):
        found += _outside(text)
        words = _WORDS.findall(phrases[slot]) if slot else []
        found += [(word, f"{'I' if at else 'B'}-{(slot or '').upper()}") for at, word in enumerate(words)]
    (first, tag), *rest = found
    return [(first[0].upper() + first[1:], tag), *rest]


def _outside(text: str) -> Tokens:
    return [(word, OUTSIDE) for word in _WORDS.findall(text)]


def _with_wrong_type(row: Tokens, rng: np.random.Generator) -> Tokens:
    """The row with another type for one of its entities."""
    entities = spans([tag for _, tag in row])
    entity = entities[int(rng.integers(len(entities)))]
    others: Sequence[str] = [slot.upper() for slot in SLOTS if slot.upper() != entity.type]
    type_ = others[int(rng.integers(len(others)))]
    changed = {at: f"{row[at][1][:2]}{type_}" for at in range(entity.start, entity.end)}
    return [(word, changed.get(at, tag)) for at, (word, tag) in enumerate(row)]
