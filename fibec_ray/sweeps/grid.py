"""`method=fibecfed,fedavg seed=0,1,2` on an experiment -> the variants and seeds of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from fibec_ray.errors import ConfigError

OPENING, CLOSING = "[{(", "]})"


@dataclass(frozen=True)
class Grid:
    """The variants and seeds that a list of overrides with several values stands for."""

    common: tuple[str, ...]
    """overrides with one value"""
    seeds: tuple[int, ...]
    """(0,) if there is no `seed=`"""
    variants: tuple[tuple[str, tuple[str, ...]], ...]
    """(name, overrides) for each combination of the other values, the last key changing fastest"""


def parse_grid(overrides: Sequence[str]) -> Grid:
    """Read overrides such as method=a,b. Raises ConfigError if no key has several values."""
    split = [(key, list(values(text))) for key, _, text in (override.partition("=") for override in overrides)]
    seeds = [text for key, texts in split if key == "seed" for text in texts]
    if not all(text.isdecimal() for text in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seed={','.join(seeds)}: expected different whole numbers such as seed=0,1,2")
    axes = [(key, texts) for key, texts in split if key != "seed" and len(texts) > 1]
    if not axes:
        raise ConfigError(
            "nothing to compare: give one key several values, such as method=fibecfed,fedavg, or name a sweep file"
        )
    common = tuple(f"{key}={texts[0]}" for key, texts in split if key != "seed" and len(texts) == 1)
    keys = [key for key, _ in axes]
    combinations = product(*(texts for _, texts in axes))
    return Grid(common, tuple(int(text) for text in seeds) or (0,), tuple(_variant(keys, c) for c in combinations))


def values(text: str) -> Iterator[str]:
    """Split at commas outside brackets: 'a,[1,2],b' -> 'a', '[1,2]', 'b'."""
    depth, start = 0, 0
    for at, letter in enumerate(text):
        depth += (letter in OPENING) - (letter in CLOSING)
        if letter == "," and depth == 0:
            yield text[start:at].strip()
            start = at + 1
    yield text[start:].strip()


def _variant(keys: Sequence[str], texts: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Name a method by itself, any other value with its key: 'fibecfed cohort_size=10'."""
    pairs = list(zip(keys, texts, strict=True))
    name = " ".join(text if key == "method" else f"{key}={text}" for key, text in pairs)
    return name, tuple(f"{key}={text}" for key, text in pairs)
