"""Generates the embedded instructions: seeded exercises with words and numbers, each with one right answer.

A category is a kind of exercise, so partitions by label give devices different exercises. The texts use digits and
small letters only, which every tokenizer can write. Each exercise has a grade in [0, 1],
its true difficulty, which no method sees: 0 for the fewest items of its kind, 1 for the most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from fibec_ray.data.examples import Instructions
from fibec_ray.errors import DataError
from fibec_ray.seeds import numpy_generator

WORDS = (
    "apple", "bird", "boat", "book", "cake", "chair", "cloud", "coat", "corn", "desk", "door", "dress", "farm", "fire",
    "fish", "game", "gold", "grass", "hand", "hill", "horse", "house", "island", "key", "king", "lake", "lamp", "leaf",
    "moon", "mouse", "night", "ocean", "paper", "queen", "rain", "road", "river", "salt", "ship", "snow", "stone",
    "table", "tree", "train", "water", "wind", "winter", "yard",
)  # fmt: skip
LEAST_ITEMS = 2
_MAX_REDRAWS = 1000
_ONE_IN = 5
"""One exercise in five is for testing, by a hash of its content: no training exercise asks the same in other words."""


class ExerciseSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Number and length of the exercises."""

    num_train: int = Field(1200, ge=2, le=20_000, description="training rows to generate")
    num_test: int = Field(240, ge=1, le=5_000, description="test rows to generate")
    most_items: int = Field(4, ge=3, le=8, description="words of the longest exercise; the shortest have 2")


class Exercise(NamedTuple):
    """An instruction with its input and response."""

    instruction: str
    input: str
    response: str


class Kind(NamedTuple):
    """A kind of exercise. write: (items, wording) -> the exercise; items are words, or two numbers."""

    wordings: tuple[str, ...]
    write: Callable[[list[str], str], Exercise]
    numbers: bool = False


def _about(response: Callable[[list[str]], str]) -> Callable[[list[str], str], Exercise]:
    """Exercises with their words in the input."""
    return lambda words, wording: Exercise(wording, " ".join(words), response(words))


def _within(response: Callable[[list[str]], str]) -> Callable[[list[str], str], Exercise]:
    """Exercises with their items in the instruction."""
    return lambda items, wording: Exercise(wording.format(*items), "", response(items))


KINDS: dict[str, Kind] = {
    "count": Kind(("how many words are there?", "count the words."), _about(lambda words: str(len(words)))),
    "last": Kind(("which word comes last?", "write the last word."), _about(lambda words: words[-1])),
    "larger": Kind(
        ("which is larger, {0} or {1}?", "write the larger one of {0} and {1}."),
        _within(lambda pair: max(pair, key=int)),
        numbers=True,
    ),
    "reverse": Kind(
        ("write the words in reverse order.", "write the words from the last to the first."),
        _about(lambda words: " ".join(reversed(words))),
    ),
    "sort": Kind(
        ("write the words in the order of the alphabet.", "sort the words from a to z."),
        _about(lambda words: " ".join(sorted(words))),
    ),
    "sum": Kind(
        ("what is {0} plus {1}?", "add {0} and {1}."),
        _within(lambda pair: str(sum(map(int, pair)))),
        numbers=True,
    ),
}
"""By category."""


def generate(num_samples: int, seed: int, split: str, settings: ExerciseSettings) -> Instructions:
    """Generate `num_samples` distinct exercises of one split ("train" or "test"); kinds are balanced to within one.

    Raises DataError if there are not enough different ones.
    """
    assert split in ("train", "test"), split
    rng, names = numpy_generator(seed, "exercises", split), tuple(KINDS)
    labels = rng.permutation(np.arange(num_samples) % len(names)).astype(np.int64)
    found: dict[Exercise, float] = {}
    for label in labels:
        exercise, grade = _new(names[label], rng, split, settings, found)
        found[exercise] = grade
    return Instructions(
        [each.instruction for each in found],
        [each.input for each in found],
        [each.response for each in found],
        labels,
        names,
        np.array(list(found.values()), dtype=np.float32),
    )


def _new(
    name: str, rng: np.random.Generator, split: str, settings: ExerciseSettings, seen: dict[Exercise, float]
) -> tuple[Exercise, float]:
    kind = KINDS[name]
    for _ in range(_MAX_REDRAWS):  # bounded: too large a request ends in an error
        items, grade = _numbers(rng) if kind.numbers else _words(rng, settings.most_items)
        if _split_of(name, items) != split:
            continue
        exercise = kind.write(items, kind.wordings[int(rng.integers(len(kind.wordings)))])
        if exercise not in seen:
            return exercise, grade
    raise DataError(
        f"data.exercises: there are no more new exercises of the kind '{name}' for {split} rows; "
        f"lower data.exercises.num_{split}"
    )


def _words(rng: np.random.Generator, most: int) -> tuple[list[str], float]:
    count = int(rng.integers(LEAST_ITEMS, most + 1))
    chosen = rng.choice(len(WORDS), size=count, replace=False)
    return [WORDS[k] for k in chosen], (count - LEAST_ITEMS) / (most - LEAST_ITEMS)


def _numbers(rng: np.random.Generator) -> tuple[list[str], float]:
    """Two different numbers, both of one digit or both of two."""
    two_digits = bool(rng.integers(2))
    first, second = rng.choice(np.arange(10, 100) if two_digits else np.arange(10), size=2, replace=False)
    return [str(first), str(second)], float(two_digits)


def _split_of(name: str, items: list[str]) -> str:
    digest = hashlib.blake2b(f"{name} {' '.join(items)}".encode(), digest_size=4).digest()
    return "train" if int.from_bytes(digest, "big") % _ONE_IN else "test"
