"""Generates the embedded task: seeded English messages to a city assistant, with a known true difficulty.

The class is the topic that the user asks about. Each message has a true difficulty in [0, 1]. No method sees it; the
round log uses it to show how well a curriculum orders the samples:

    0.3 * (padding sentences) / 2  +  0.3 * (negates another topic)  +  0.3 * (mentions another topic first)

A message with a wrong label (label noise) has difficulty 1.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from fibec_ray.data.examples import Examples
from fibec_ray.data.grammar import NEGATIONS, OPENERS, PADDING, TOPICS, Topic
from fibec_ray.data.sentences import TIMES_OF, filled, one_of
from fibec_ray.errors import DataError
from fibec_ray.seeds import numpy_generator

MAX_PADDING = 2
_MAX_REDRAWS = 1000
T = TypeVar("T")


class SyntheticSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Number and difficulty of the messages."""

    num_train: int = Field(1600, ge=2, le=50_000, description="training rows to generate")
    num_test: int = Field(400, ge=1, le=10_000, description="test rows to generate")
    num_classes: int = Field(len(TOPICS), ge=2, le=len(TOPICS), description="topics that messages are about")
    label_noise: float = Field(0.05, ge=0, lt=1, description="fraction of training messages with a wrong label")
    test_label_noise: float = Field(0.0, ge=0, lt=1, description="fraction of test messages with a wrong label")
    hard_fraction: float = Field(
        0.6, ge=0, le=1, description="fraction of messages that negate another topic, mention one first, or both"
    )


@dataclass(frozen=True)
class Features:
    """The features that make a message hard."""

    padding: int
    """number of sentences about no topic, 0 to MAX_PADDING"""
    negation: bool
    contrast: bool

    @property
    def grade(self) -> float:
        """True difficulty of the message, in [0, 1]."""
        return 0.3 * self.padding / MAX_PADDING + 0.3 * self.negation + 0.3 * self.contrast


def generate(num_samples: int, seed: int, split: str, settings: SyntheticSettings) -> Examples:
    """Generate `num_samples` distinct messages of one split ("train" or "test"); classes are balanced to within one.

    Training and test messages use different times (see `grammar.py`), so none is in both. Raises DataError if the
    grammar has too few messages.
    """
    assert split in ("train", "test"), split
    rng = numpy_generator(seed, "synthetic", split)
    classes = rng.permutation(np.arange(num_samples) % settings.num_classes)
    features = [draw_features(rng, settings.hard_fraction) for _ in range(num_samples)]
    texts: dict[str, None] = {}  # a set that keeps its order
    for class_, wanted in zip(classes, features, strict=True):
        texts[_new_message(int(class_), wanted, rng, split, settings, texts)] = None
    noise = settings.label_noise if split == "train" else settings.test_label_noise
    labels, wrong = _flip(classes, noise, settings.num_classes, rng)
    true_difficulty = np.array([wanted.grade for wanted in features], dtype=np.float32)
    true_difficulty[wrong] = 1.0
    return Examples(list(texts), None, labels, true_difficulty)


def draw_features(rng: np.random.Generator, hard_fraction: float) -> Features:
    """Padding is uniform; a hard message has a negation, a contrast, or both, a third each."""
    padding = int(rng.integers(MAX_PADDING + 1))
    if rng.random() >= hard_fraction:
        return Features(padding, negation=False, contrast=False)
    which = int(rng.integers(3))
    return Features(padding, negation=which != 1, contrast=which != 0)


def write(class_: int, features: Features, rng: np.random.Generator, times: tuple[str, ...], num_classes: int) -> str:
    """Write one message that asks about the topic `class_` and has the features."""

    def fill(pattern: str, topic: Topic) -> str:
        return filled(pattern, topic, rng, times)

    opener, sentences = compose(class_, features, rng, num_classes, fill)
    return " ".join([opener, *sentences] if opener else sentences)


def compose(
    class_: int, features: Features, rng: np.random.Generator, num_classes: int, fill: Callable[[str, Topic], T]
) -> tuple[str, list[T]]:
    """The opener ('' for none) and the sentences of a message. fill: (sentence with slots, topic) -> a sentence."""
    topics = list(TOPICS.values())[:num_classes]
    others = [topic for k, topic in enumerate(topics) if k != class_]
    sentences = [fill(one_of(topics[class_].asks, rng), topics[class_])]
    if features.contrast:
        other = others[rng.integers(len(others))]
        sentences.insert(0, fill(one_of(other.remarks, rng), other))
    if features.negation:
        other = others[rng.integers(len(others))]
        subject = one_of(other.subjects, rng)
        negation = fill(one_of(NEGATIONS, rng).replace("{subject}", subject), other)
        sentences.insert(len(sentences) if rng.random() < 0.5 else len(sentences) - 1, negation)
    for k in rng.choice(len(PADDING), size=features.padding, replace=False):
        sentences.insert(int(rng.integers(len(sentences) + 1)), fill(PADDING[k], topics[class_]))
    return one_of(OPENERS, rng), sentences


def _new_message(
    class_: int,
    features: Features,
    rng: np.random.Generator,
    split: str,
    settings: SyntheticSettings,
    seen: Container[str],
) -> str:
    for _ in range(_MAX_REDRAWS):  # bounded: an exhausted grammar ends in an error
        text = write(class_, features, rng, TIMES_OF[split], settings.num_classes)
        if text not in seen:
            return text
    raise DataError(
        f"data.synthetic: the grammar has no more new messages for {split} rows; lower data.synthetic.num_{split}"
    )


def _flip(
    classes: NDArray[np.int64], noise: float, num_classes: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The labels with a fraction `noise` changed to another class, and the changed rows."""
    wrong = rng.permutation(len(classes))[: round(noise * len(classes))]
    labels = classes.astype(np.int64)
    labels[wrong] = (labels[wrong] + rng.integers(1, num_classes, size=len(wrong))) % num_classes
    return labels, wrong
