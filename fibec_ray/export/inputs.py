"""Turn what a user gives a trained model into the batches that the run's evaluation would make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fibec_ray.data.dense import DenseSet
from fibec_ray.data.encode import Mode, encode
from fibec_ray.data.encode_instructions import encode_instructions
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.data.examples import Examples, Instructions, Points
from fibec_ray.data.instructions import InstructionFormat
from fibec_ray.errors import DataError
from fibec_ray.model_types import Shard
from fibec_ray.models.network import Shape
from fibec_ray.runs.saved_model import Prompts

Inputs = Sequence[Any]
"""Texts, pairs of texts, or numbers of one sample's shape each."""
ANY_RESPONSE = "0"
"""Stands where training has a response: prompts are encoded as samples, and only their prompts are used."""


def encoded(inputs: Inputs, prompts: Prompts, mode: Mode, tokenizer: Any) -> EncodedSet:
    """Texts (or pairs) as the run encoded its test set; all labels are 0. Raises DataError."""
    texts_a, texts_b = _columns(inputs, len(prompts.text_columns), prompts.task)
    examples = Examples(texts_a, texts_b, np.zeros(len(texts_a), np.int64))
    return encode(examples, prompts, tokenizer, mode, prompts.max_length)


def prompt_ids(inputs: Inputs, prompts: Prompts, tokenizer: Any) -> list[list[int]]:
    """The tokens of each prompt, as in training. inputs: instructions, or pairs (instruction, input)."""
    form = prompts.instructions or InstructionFormat()
    asked = [_instruction(value, at) for at, value in enumerate(inputs)]
    rows = Instructions(
        [instruction for instruction, _ in asked],
        [about for _, about in asked],
        [ANY_RESPONSE] * len(asked),
        np.zeros(len(asked), np.int64),
        ("",),
    )
    made, _ = encode_instructions(rows, form, tokenizer, prompts.max_length)
    starts = made.offsets[:-1]
    return [
        made.tokens[start : start + at + 1].tolist() for start, at in zip(starts, made.answer_at.tolist(), strict=True)
    ]


def points(inputs: Any, shape: Shape) -> Shard:
    """Samples that are not text, (N, *shape), as a shard. Raises DataError for numbers of another shape."""
    try:
        features = np.asarray(inputs, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"this model predicts from numbers of shape (N, {_sizes(shape)}): {error}") from error
    if features.shape[1:] != tuple(shape):
        raise DataError(
            f"this model predicts from numbers of shape (N, {_sizes(shape)}), and was given {features.shape}; "
            "give an array with one row per sample"
        )
    made = DenseSet.of(Points(features, np.zeros(len(features), np.int64)))
    return made.shard(np.arange(len(features)))


def _columns(inputs: Inputs, count: int, task: str) -> tuple[list[str], list[str] | None]:
    rows = [(value,) if isinstance(value, str) else tuple(value) for value in inputs]
    for at, row in enumerate(rows):
        if len(row) != count or not all(isinstance(text, str) for text in row):
            wanted = "a text" if count == 1 else "a pair of texts, (first, second)"
            found = "a text" if isinstance(inputs[at], str) else f"{inputs[at]!r:.60}"
            raise DataError(f"input {at}: task {task} takes {wanted} for each sample, and this is {found}")
    return [row[0] for row in rows], [row[1] for row in rows] if count == 2 else None


def _instruction(value: Any, at: int) -> tuple[str, str]:
    pair = (value, "") if isinstance(value, str) else tuple(value)
    if len(pair) != 2 or not all(isinstance(text, str) for text in pair) or not pair[0].strip():
        raise DataError(f"input {at}: give an instruction, or a pair (instruction, input); this is {value!r:.60}")
    return pair[0], pair[1]


def _sizes(shape: Shape) -> str:
    return ", ".join(map(str, shape))
