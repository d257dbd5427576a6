"""A run's test prompts as texts that give the run's tokens again, also where the run cut them to data.max_length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fibec_ray.data.encode import Prompt, text_numbers
from fibec_ray.data.encoded import EncodedSet

Tokens = list[int]


def answer_tokens(encoded: EncodedSet) -> list[Tokens]:
    """The tokens behind each prompt; empty for classes."""
    starts, stops = encoded.offsets[:-1].tolist(), encoded.offsets[1:].tolist()
    ends = encoded.answer_at.tolist()
    return [encoded.tokens[start + at + 1 : stop].tolist() for start, stop, at in zip(starts, stops, ends, strict=True)]


def texts_as_encoded(prompts: Sequence[Prompt], encoded: EncodedSet, tokenizer: Any) -> list[str]:
    """The text of each prompt, without the ends of texts that the run cut. tokenizer: one for generation."""
    made = tokenizer([prompt.text for prompt in prompts], return_offsets_mapping=True, verbose=False)
    starts = encoded.offsets[:-1].tolist()
    found = []
    for i, (prompt, tokens) in enumerate(zip(prompts, encoded.prompts(), strict=True)):
        if made["input_ids"][i] == tokens:
            found.append(prompt.text)
        else:
            left = encoded.texts[starts[i] : starts[i] + len(tokens)].tolist()
            found.append(_cut(prompt, made["offset_mapping"][i], left))
    return found


def _cut(prompt: Prompt, places: Sequence[tuple[int, int]], left: Sequence[int]) -> str:
    """The prompt with as many tokens of each text as were left. left: the number of each remaining token's text."""
    numbers, text = text_numbers(prompt, list(places)), prompt.text
    for number, (_, end) in reversed(list(enumerate(prompt.fields, start=1))):
        own = [place for place, mark in zip(places, numbers, strict=True) if mark == number]
        kept = left.count(number)
        if 0 < kept < len(own):
            text = text[: own[kept - 1][1]] + text[end:]
    return text
