"""Generates the embedded preferences: exercises with their right answer (chosen) and a plausible wrong one (rejected).

The exercises, their categories and their true difficulty are those of `exercises.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel, Field

from fibec_ray.data import exercises
from fibec_ray.data.conversations import asked, reply
from fibec_ray.data.examples import Instructions, Pairs
from fibec_ray.seeds import numpy_generator

SHIFTS = (-10, -2, -1, 1, 2, 10)
"""of wrong sums"""


class PreferenceSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Number and length of the exercises with a right and a wrong answer."""

    num_train: int = Field(800, ge=2, le=20_000, description="training rows to generate")
    num_test: int = Field(160, ge=1, le=5_000, description="test rows to generate")
    most_items: int = Field(4, ge=3, le=8, description="words of the longest exercise; the shortest have 2")


def _other_number(right: str, items: Sequence[str], rng: np.random.Generator) -> str:
    """A number of words that is off by one or two."""
    near = [count for count in range(max(1, int(right) - 2), int(right) + 3) if count != int(right)]
    return str(rng.choice(near))


def _other_sum(right: str, items: Sequence[str], rng: np.random.Generator) -> str:
    """A sum that is off by 1, 2 or 10."""
    near = [int(right) + shift for shift in SHIFTS if int(right) + shift >= 0]
    return str(rng.choice(near))


def _other_item(right: str, items: Sequence[str], rng: np.random.Generator) -> str:
    """Another item of the exercise."""
    return str(rng.choice([item for item in items if item != right]))


def _other_order(right: str, items: Sequence[str], rng: np.random.Generator) -> str:
    """The right words in the order of the exercise or, if that is right, with the first two swapped."""
    words = right.split()
    if list(items) != words:
        return " ".join(items)
    return " ".join([words[1], words[0], *words[2:]])


WRONG: dict[str, Callable[[str, Sequence[str], np.random.Generator], str]] = {
    "count": _other_number,
    "last": _other_item,
    "larger": _other_item,
    "reverse": _other_order,
    "sort": _other_order,
    "sum": _other_sum,
}
"""(right answer, items of the exercise, generator) -> a wrong answer, by category."""


def generate(num_samples: int, seed: int, split: str, settings: PreferenceSettings) -> Pairs:
    """Generate `num_samples` exercises of one split ("train" or "test") with two answers each.

    Raises DataError if there are not enough different ones.
    """
    sizes = {"num_train": settings.num_train, "num_test": settings.num_test, "most_items": settings.most_items}
    rows = exercises.generate(num_samples, seed, split, exercises.ExerciseSettings(**sizes))
    rng = numpy_generator(seed, "wrong answers", split)
    wrong = [_wrong(rows, row, rng) for row in range(len(rows))]
    return Pairs(
        [asked(f"{text} {about}".strip()) for text, about in zip(rows.instructions, rows.inputs, strict=True)],
        [reply(text) for text in rows.responses],
        [reply(text) for text in wrong],
        rows.labels,
        rows.categories,
        rows.true_difficulty,
    )


def _wrong(rows: Instructions, row: int, rng: np.random.Generator) -> str:
    numbers = [word.strip(",.?") for word in rows.instructions[row].split()]
    items = rows.inputs[row].split() or [word for word in numbers if word.isdigit()]
    return WRONG[rows.categories[rows.labels[row]]](rows.responses[row], items, rng)
