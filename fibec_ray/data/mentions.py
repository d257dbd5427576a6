"""Generates the embedded messages with any number of topics, from the grammar of the embedded task.

A message has a sentence for each of its topics, in random order, and some sentences about none. True difficulty, in
[0, 1]: the number of topics that are only named as what the message is not about, over the most of these.
"""

from __future__ import annotations

import string

import numpy as np
from pydantic import BaseModel, Field

from fibec_ray.data.examples import Examples
from fibec_ray.data.grammar import NAMES, NEGATIONS, PADDING, PLACES, TOPICS, Topic
from fibec_ray.data.synthetic import TIMES_OF
from fibec_ray.seeds import numpy_generator

NAMES_OF_TOPICS = tuple(TOPICS)
MOST = 3
"""topics of a message"""
PADDING_OF = {"test": PADDING[::4], "train": tuple(text for i, text in enumerate(PADDING) if i % 4)}
"""Sentences about no topic. A message without topics has no time that would keep the splits apart."""
SHARES = (0.15, 0.4, 0.3, 0.15)
"""of messages with 0, 1 ... topics"""


class MentionSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Number of messages, and how many name a topic that they are not about."""

    num_train: int = Field(1600, ge=2, le=50_000, description="training rows to generate")
    num_test: int = Field(400, ge=2, le=10_000, description="test rows to generate")
    negated: float = Field(0.3, ge=0, le=1, description="fraction of messages that name a topic they are not about")


def generate(num_samples: int, seed: int, split: str, settings: MentionSettings) -> Examples:
    """Draw messages; `targets` are flags (N, C) of the topics. Training and test messages use different times."""
    assert split in ("train", "test"), split
    rng = numpy_generator(seed, "mentions", split)
    topics = list(TOPICS.values())
    counts = rng.choice(MOST + 1, size=num_samples, p=SHARES)
    texts, flags, difficulties = [], np.zeros((num_samples, len(topics)), np.float32), []
    for row, count in enumerate(counts):
        order = rng.permutation(len(topics))
        about = order[:count]
        flags[row, about] = 1
        sentences = [_fill(_one(topics[t].asks, rng), topics[t], split, rng) for t in about]
        negated = rng.random() < settings.negated
        if negated:
            other = topics[order[-1]]
            pattern = _one(NEGATIONS, rng).replace("{subject}", _one(other.subjects, rng))
            sentences.insert(int(rng.integers(len(sentences) + 1)), _fill(pattern, other, split, rng))
        for _ in range(max(1 - len(sentences), int(rng.integers(2)))):
            filler = _fill(_one(PADDING_OF[split], rng), topics[0], split, rng)
            sentences.insert(int(rng.integers(len(sentences) + 1)), filler)
        texts.append(" ".join(sentences))
        difficulties.append(float(negated))
    return Examples(texts, None, np.zeros(num_samples, np.int64), np.array(difficulties, np.float32), targets=flags)


def _fill(pattern: str, topic: Topic, split: str, rng: np.random.Generator) -> str:
    words = {"place": PLACES, "name": NAMES, "time": TIMES_OF[split], "thing": topic.things}
    slots = [slot for _, slot, _, _ in string.Formatter().parse(pattern) if slot]
    text = pattern.format(**{slot: _one(words[slot], rng) for slot in slots})
    return text[0].upper() + text[1:]


def _one(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]
