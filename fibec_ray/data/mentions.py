"""Generates the embedded messages with any number of topics, from the grammar of the embedded task.

A message has a sentence for each of its topics, in random order, and maybe one about none. True difficulty: 1 if the
message names a topic that it is not about, else 0.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, Field

from fibec_ray.data.examples import Examples
from fibec_ray.data.grammar import NEGATIONS, PADDING, TOPICS
from fibec_ray.data.sentences import TIMES_OF, filled, one_of
from fibec_ray.seeds import numpy_generator

NAMES_OF_TOPICS = tuple(TOPICS)
MOST = 3
"""most topics of a message"""
PADDING_OF = {"test": PADDING[::4], "train": tuple(text for i, text in enumerate(PADDING) if i % 4)}
"""Sentences about no topic. They differ between the splits, because messages without topics have no time."""
SHARES = (0.15, 0.4, 0.3, 0.15)
"""of messages with 0, 1, 2 and 3 topics"""


class MentionSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Number of messages, and how many name a topic that they are not about."""

    num_train: int = Field(1600, ge=2, le=50_000, description="training rows to generate")
    num_test: int = Field(400, ge=2, le=10_000, description="test rows to generate")
    negated: float = Field(0.3, ge=0, le=1, description="fraction of messages that name a topic they are not about")


def generate(num_samples: int, seed: int, split: str, settings: MentionSettings) -> Examples:
    """Generate messages; `targets` are flags (N, C) of the topics. Training and test messages use different times."""
    assert split in ("train", "test"), split
    rng = numpy_generator(seed, "mentions", split)
    topics, times = list(TOPICS.values()), TIMES_OF[split]
    counts = rng.choice(MOST + 1, size=num_samples, p=SHARES)
    texts, flags, difficulties = [], np.zeros((num_samples, len(topics)), np.float32), []
    for row, count in enumerate(counts):
        order = rng.permutation(len(topics))
        about = order[:count]
        flags[row, about] = 1
        sentences = [filled(one_of(topics[t].asks, rng), topics[t], rng, times) for t in about]
        negated = rng.random() < settings.negated
        if negated:
            other = topics[order[-1]]
            pattern = one_of(NEGATIONS, rng).replace("{subject}", one_of(other.subjects, rng))
            sentences.insert(int(rng.integers(len(sentences) + 1)), filled(pattern, other, rng, times))
        for _ in range(max(1 - len(sentences), int(rng.integers(2)))):
            filler = filled(one_of(PADDING_OF[split], rng), topics[0], rng, times)
            sentences.insert(int(rng.integers(len(sentences) + 1)), filler)
        texts.append(" ".join(sentences))
        difficulties.append(float(negated))
    return Examples(texts, None, np.zeros(num_samples, np.int64), np.array(difficulties, np.float32), targets=flags)
