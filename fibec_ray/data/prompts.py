"""Filled templates, and which of their tokens are text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from fibec_ray.data.tasks import MASK


class Prompt(NamedTuple):
    """A filled template; places are character ranges (start, end) of the text."""

    text: str
    fields: list[tuple[int, int]]
    mask: tuple[int, int] | None


def fill(template: str, values: Mapping[str, str]) -> Prompt:
    """The template with its placeholders replaced. Piece by piece: a text that contains `{b}` stays as it is.

    values: by placeholder; what stands for MASK is no text.
    """
    text, fields, mask = "", [], None
    for piece in re.split(f"({'|'.join(map(re.escape, values))})", template):
        place = (len(text), len(text) + len(values.get(piece, piece)))
        text += values.get(piece, piece)
        if piece == MASK:
            mask = place
        elif piece in values:
            fields.append(place)
    return Prompt(text, fields, mask)


def text_numbers(prompt: Prompt, places: list[tuple[int, int]]) -> list[int]:
    """The number of each token's text; 0 for a token that lies outside, or that has a piece of the template with it."""
    fields = list(enumerate(prompt.fields, start=1))
    return [
        next((number for number, (first, last) in fields if first <= start < end <= last), 0) for start, end in places
    ]
