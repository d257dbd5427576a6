"""Encodes instructions and responses as tokens, once per run.

    causal     [BOS] prompt   response [EOS]      the last token of the prompt and each of the response predict the next
    seq2seq    prompt [EOS] | response [EOS]      the encoder reads the prompt, the decoder writes the response

Prompt and response are tokenized separately, so generation sees the same prompt tokens as training.

A sample that is too long is cut: first the prompt's texts lose their ends (the longest first) while they take more than
half of the room beside the template, then the response loses its end. The template, one token of each text and some of
the response always stay. A response that was cut has no end token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fibec_ray.data.encode import CHUNK, Prompt, Sample, Tokenizer, fill, pack, text_numbers
from fibec_ray.data.encoded import EncodedSet, kept_tokens
from fibec_ray.data.examples import Instructions
from fibec_ray.data.instructions import InstructionFormat
from fibec_ray.data.source_target import SourceTargetSet
from fibec_ray.encoder import EncodeMode
from fibec_ray.errors import DataError


@dataclass
class Cut:
    """Samples that were too long."""

    prompts: int = 0
    responses: int = 0


def encode_instructions(
    rows: Instructions, form: InstructionFormat, tokenizer: Tokenizer, max_length: int, mode: EncodeMode = "causal"
) -> tuple[EncodedSet, Cut]:
    """Encode all rows as token ids, at most `max_length` tokens each, and count the rows that were cut.

    mode: causal or seq2seq. Either way prompt and response have `max_length` tokens together.
    The set's labels are categories. Raises DataError if the prompt leaves no room, or a response has no token.
    """
    if not tokenizer.is_fast:
        raise DataError("prompts need a fast tokenizer (tokenizer.json beside the model)")
    cut = Cut()
    starts = range(0, len(rows), CHUNK)
    parts = (rows.take(np.arange(start, min(start + CHUNK, len(rows)))) for start in starts)
    two = mode == "seq2seq"
    samples = (_samples(part, form, tokenizer, max_length, cut, two) for part in parts)
    made = replace(pack(samples, rows.labels, rows.true_difficulty, tokenizer), answers_are_texts=True)
    return SourceTargetSet.of(made) if two else made, cut


def prompts_of(rows: Instructions, form: InstructionFormat) -> list[Prompt]:
    """The prompt of each row."""
    asked = zip(map(str.strip, rows.instructions), map(str.strip, rows.inputs), strict=True)
    return [
        fill(form.prompt_with_input if about else form.prompt, {"{instruction}": instruction, "{input}": about})
        for instruction, about in asked
    ]


def end_id(tokenizer: Tokenizer) -> int:
    """The token that ends a response: the end-of-text token, or BERT's separator."""
    for known in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if known is not None:
            return known
    raise DataError("backbone.tokenizer: has no end-of-text token, and a response needs one; choose another")


def _samples(
    rows: Instructions, form: InstructionFormat, tokenizer: Tokenizer, max_length: int, cut: Cut, closes: bool
) -> Iterator[Sample]:
    """closes: keep the closing tokens that the tokenizer appends to a prompt."""
    prompts = prompts_of(rows, form)
    options: dict[str, Any] = {"padding": False, "truncation": False, "verbose": False}
    encoded = tokenizer(
        [prompt.text for prompt in prompts],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        **options,
    )
    responses = tokenizer([text.strip() for text in rows.responses], add_special_tokens=False, **options)["input_ids"]
    end, masks = end_id(tokenizer), encoded["special_tokens_mask"]
    typed = encoded.get("token_type_ids")
    for i, (prompt, ids, places) in enumerate(
        zip(prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ):
        _refuse_empty(rows, i, ids, responses[i])
        length = len(ids)
        while not closes and length > 1 and masks[i][length - 1]:
            length -= 1
        texts = text_numbers(prompt, places[:length])
        texts[-1] = 0  # the token that the response follows
        sample = _sample(ids[:length], texts, [*responses[i], end], max_length, cut)
        yield sample if typed is None else sample._replace(types=[0] * len(sample.tokens))


def _refuse_empty(rows: Instructions, i: int, prompt: list[int], response: list[int]) -> None:
    where = "" if rows.origin is None else f"{rows.origin.place(i)}: "
    for name, text, tokens in (("prompt", rows.instructions[i], prompt), ("response", rows.responses[i], response)):
        if not tokens:
            raise DataError(f"{where}the {name} {text[:80]!r} has no token for this tokenizer; drop the row")


def _sample(prompt: list[int], texts: list[int], response: list[int], max_length: int, cut: Cut) -> Sample:
    fixed = texts.count(0)
    num_text, least = len(texts) - fixed, len(set(texts) - {0})
    room = max_length - fixed
    if room < least + 1:
        raise DataError(
            f"data.max_length: {max_length} tokens have no room for a response beside the prompt; "
            f"set at least {fixed + least + 1}"
        )
    for_text = max(least, room - len(response), min(num_text, room // 2))
    if num_text > for_text:
        cut.prompts += 1
        kept = kept_tokens(np.array(texts, dtype=np.uint8), fixed + for_text).tolist()
        prompt, texts = [prompt[i] for i in kept], [texts[i] for i in kept]
    if len(response) > max_length - len(prompt):
        cut.responses += 1
        response = response[: max_length - len(prompt)]
    return Sample(prompt + response, texts + [0] * len(response), len(prompt) - 1, None)
