"""Fills the sentences of the embedded tasks (`grammar.py`) with drawn places, names, times and things."""

from __future__ import annotations

import string

import numpy as np

from fibec_ray.data.grammar import NAMES, PLACES, TIMES, Topic

TIMES_OF = {  # every fourth time belongs to the test messages
    "test": TIMES[::4],
    "train": tuple(time for k, time in enumerate(TIMES) if k % 4),
}


def one_of(words: tuple[str, ...], rng: np.random.Generator) -> str:
    """Draw one of the words."""
    return words[int(rng.integers(len(words)))]


def drawn_slots(pattern: str, topic: Topic, rng: np.random.Generator, times: tuple[str, ...]) -> dict[str, str]:
    """Draw a phrase for each slot of a sentence."""
    words = {"place": PLACES, "name": NAMES, "time": times, "thing": topic.things}
    slots = [slot for _, slot, _, _ in string.Formatter().parse(pattern) if slot]
    return {slot: one_of(words[slot], rng) for slot in slots}


def filled(pattern: str, topic: Topic, rng: np.random.Generator, times: tuple[str, ...]) -> str:
    """The sentence with drawn phrases in its slots. Its first letter is a capital."""
    text = pattern.format(**drawn_slots(pattern, topic, rng, times))
    return text[0].upper() + text[1:]
