"""Encodes prompts with two responses each as tokens, once per run.

    [BOS] prompt   chosen [EOS]
    [BOS] prompt   rejected [EOS]

Prompt and responses are tokenized separately, so both responses follow the same tokens. A pair that is too long is cut:
first the prompt loses its beginning while it takes more than half of the room, then the responses lose their ends.
Both texts keep the same prompt. A response that was cut has no end token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fibec_ray.data.encode import CHUNK, Sample, Tokenizer, pack
from fibec_ray.data.encode_instructions import Cut, end_id
from fibec_ray.data.examples import Pairs
from fibec_ray.data.pairs import PairSet
from fibec_ray.errors import DataError


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt and its responses. fixed: leading special tokens, which always stay."""

    prompt: list[int]
    fixed: int
    chosen: list[int]
    rejected: list[int]


def encode_pairs(rows: Pairs, tokenizer: Tokenizer, max_length: int) -> PairSet:
    """Encode all rows as token ids, at most `max_length` tokens in each text.

    Raises DataError if a prompt or a response has no token, or there is no room for them.
    """
    if not tokenizer.is_fast:
        raise DataError("prompts need a fast tokenizer (tokenizer.json beside the model)")
    cut, samples = Cut(), []
    for start in range(0, len(rows), CHUNK):
        part = rows.take(np.arange(start, min(start + CHUNK, len(rows))))
        samples += [_fitted(each, max_length, cut) for each in _tokens(part, tokenizer)]
    labels = np.ones((len(rows), 1), np.int64)
    chosen, rejected = (
        replace(pack([iter(side)], labels, rows.true_difficulty, tokenizer), answers_are_texts=True)
        for side in ([pair[0] for pair in samples], [pair[1] for pair in samples])
    )
    return PairSet(chosen, rejected, cut.prompts, cut.responses)


def _tokens(rows: Pairs, tokenizer: Tokenizer) -> Iterator[Encoded]:
    options: dict[str, Any] = {"padding": False, "truncation": False, "verbose": False}
    asked = tokenizer(rows.prompts, return_special_tokens_mask=True, **options)
    sides = [tokenizer(each, add_special_tokens=False, **options)["input_ids"] for each in (rows.chosen, rows.rejected)]
    end = end_id(tokenizer)
    for i, (ids, special) in enumerate(zip(asked["input_ids"], asked["special_tokens_mask"], strict=True)):
        length = len(ids)  # without a closing token that the tokenizer appends
        while length > 1 and special[length - 1]:
            length -= 1
        fixed = next((at for at in range(length) if not special[at]), length)
        for name, texts, found in (
            ("prompt", rows.prompts, ids[fixed:length]),
            ("chosen response", rows.chosen, sides[0][i]),
            ("rejected response", rows.rejected, sides[1][i]),
        ):
            if not found:
                where = "" if rows.origin is None else f"{rows.origin.place(i)}: "
                raise DataError(f"{where}the {name} {texts[i][:80]!r} has no token for this tokenizer; drop the row")
        yield Encoded(ids[:length], fixed, [*sides[0][i], end], [*sides[1][i], end])


def _fitted(pair: Encoded, max_length: int, cut: Cut) -> tuple[Sample, Sample]:
    """Both texts, cut to `max_length` tokens."""
    room = max_length - pair.fixed
    if room < 2:
        raise DataError(
            f"data.max_length: {max_length} tokens have no room for a prompt and a response; set at least "
            f"{pair.fixed + 2}"
        )
    words, longest = len(pair.prompt) - pair.fixed, max(len(pair.chosen), len(pair.rejected))
    kept = min(words, max(1, room - longest, room // 2))
    cut.prompts += kept < words
    cut.responses += longest > room - kept
    prompt = pair.prompt[: pair.fixed] + pair.prompt[len(pair.prompt) - kept :]
    texts = [0] * pair.fixed + [1] * (kept - 1) + [0]  # the last token is what a response follows
    return _text(prompt, texts, pair.chosen[: room - kept]), _text(prompt, texts, pair.rejected[: room - kept])


def _text(prompt: list[int], texts: list[int], response: list[int]) -> Sample:
    return Sample(prompt + response, texts + [0] * len(response), len(prompt) - 1, None)
