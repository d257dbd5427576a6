"""Answers in text: instructions from tables (`instructions`), or embedded exercises (`exercises`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fibec_ray.answers import Readout
from fibec_ray.data import exercises
from fibec_ray.data.dealing import Split
from fibec_ray.data.encode_instructions import encode_instructions, prompts_of
from fibec_ray.data.examples import Instructions
from fibec_ray.data.heterogeneity import majorities
from fibec_ray.data.instructions import COMMON, Columns, InstructionFormat, chosen_columns, instructions_of
from fibec_ray.data.questions import Questions
from fibec_ray.data.sets import SampleSet
from fibec_ray.data.settings import TEST_FRACTION_INSTRUCTIONS, DataConfig
from fibec_ray.data.source import Table
from fibec_ray.encoder import Encoder
from fibec_ray.errors import DataError
from fibec_ray.models.base import AnyBackbone
from fibec_ray.tasks.base import Task, generated, numbered
from fibec_ray.tasks.baselines import accuracies
from fibec_ray.tasks.tables import FromTables
from fibec_ray.tasks.texts import ask_for_columns, parts_of

ANY_RESPONSE = "0"
"""Placeholder response of prompts to answer: they are encoded as samples, and only their prompts are used."""


class Generation(Task):
    """Prompts that are answered with a text; the loss is over the response's tokens (`responses.py`).

    A decoder continues the prompt. In an encoder-decoder, the encoder reads it and the decoder writes the response.
    accuracy is the share of responses that greedy decoding gives exactly. Partitions by label deal by category.
    """

    instructions: InstructionFormat | None = Field(None, description="columns and prompts; null: the defaults")
    metric: Literal["accuracy"] = Field("accuracy", description="share of exact answers")

    pipeline: ClassVar[str | None] = "text-generation"
    likelihood: ClassVar[str] = "tokens"
    readout: ClassVar[Readout] = "response"
    has_texts: ClassVar[bool] = True

    @property
    def format(self) -> InstructionFormat:
        """How instructions become prompts."""
        return self.instructions or InstructionFormat()

    @property
    def num_scores(self) -> int:
        return 0

    def num_groups(self, train: Instructions) -> int | None:
        return len(train.categories) if train.has_categories else None

    def no_groups(self) -> str:
        return f"the rows of task {self.name} have none; set data.columns.category to their column"

    def unfit_for(self, backbone: AnyBackbone) -> str | None:
        if backbone.writes_text:
            return None
        return (
            f"task {self.name} needs answers in text; {backbone.scores_by} cannot do that; set "
            "backbone.head=causal_lm with a decoder, backbone.head=seq2seq with an encoder-decoder such as t5, or "
            "backbone=tiny-llama"
        )

    def encode(self, rows: Instructions, encoder: Encoder) -> SampleSet:
        made, cut = encode_instructions(rows, self.format, encoder.tokenizer, encoder.max_length, encoder.mode)
        return replace(made, num_cut=cut.prompts, num_cut_responses=cut.responses)

    def questions(self, rows: Instructions) -> Questions | None:
        return Questions(prompts_of(rows, self.format), responses=rows.responses)

    def about_cuts(self, sets: Sequence[Any], max_length: int) -> str:
        prompts, responses = sum(part.num_cut for part in sets), sum(part.num_cut_responses for part in sets)
        if not prompts + responses:
            return ""
        num_samples = sum(part.num_samples for part in sets)
        return (
            f"{prompts} prompts and {responses} responses of {num_samples} samples were truncated to "
            f"data.max_length={max_length}"
        )

    def rows_to_predict(self, inputs: Any, shape: tuple[int, ...]) -> Instructions:
        """inputs: instructions, or pairs (instruction, input)."""
        asked = [_instruction(value, at) for at, value in enumerate(inputs)]
        return Instructions(
            [instruction for instruction, _ in asked],
            [about for _, about in asked],
            [ANY_RESPONSE] * len(asked),
            np.zeros(len(asked), np.int64),
            ("",),
        )

    def input_columns(self, there: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
        """The columns of the instruction and, if there is one, of the input."""
        usual = [next((name for name in COMMON[field] if name in there), None) for field in ("instruction", "input")]
        wanted = tuple(chosen) or tuple(name for name in usual if name is not None)
        if not wanted or not set(wanted) <= set(there):
            raise DataError(ask_for_columns(there, 1))
        return wanted

    @property
    def typed_columns(self) -> tuple[str, ...]:
        return ("instruction", "input")

    def anchors(self, train: Instructions, test: Instructions, split: Split) -> dict[str, float]:
        """Exact matches of the most frequent training response, overall and of each device."""
        said = numbered([train.responses, test.responses])
        return accuracies(said[1], majorities(said[0], split))


def _instruction(value: Any, at: int) -> tuple[str, str]:
    pair = (value, "") if isinstance(value, str) else parts_of(value)
    if len(pair) != 2 or not all(isinstance(text, str) for text in pair) or not pair[0].strip():
        raise DataError(f"input {at}: give an instruction, or a pair (instruction, input); this is {value!r:.60}")
    return pair[0], pair[1]


class FromInstructions(Generation, FromTables):
    """Instructions, their inputs and responses."""

    kind: Literal["instructions"] = "instructions"

    uses: ClassVar[tuple[str, ...]] = (*FromTables.uses, "columns")
    test_fraction: ClassVar[float] = TEST_FRACTION_INSTRUCTIONS

    def effective(self, config: DataConfig) -> Self:
        actual = super().effective(config)
        columns = self.format.columns.model_dump() | config.columns.model_dump(exclude_none=True)
        return actual.model_copy(
            update={"instructions": self.format.model_copy(update={"columns": Columns(**columns)})}
        )

    def columns(self, there: list[str], where: str) -> tuple[str, ...]:
        return tuple(chosen_columns(self.format.columns, there, where).values())

    def rows_of(self, tables: Sequence[Table], config: DataConfig) -> list[Instructions]:
        parts = []
        for content, where in tables:
            chosen = chosen_columns(self.format.columns, content.column_names, where)
            parts.append(instructions_of(content, chosen, where, self.format.drop_empty))
        return Instructions.alike(parts)

    def _why_idle(self, name: str) -> str:
        if name in ("text_columns", "label_column", "labels", "drop_missing"):
            return f"task {self.name} has instructions and no labels (their columns: data.columns); remove it"
        return super()._why_idle(name)


class Exercises(Generation):
    """The embedded exercises with words and numbers, each with one right answer (`data.exercises`)."""

    kind: Literal["exercises"] = "exercises"

    uses: ClassVar[tuple[str, ...]] = ("max_length",)
    embedded: ClassVar[str | None] = "exercises"

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Instructions, Instructions]:
        train, test = Instructions.alike(generated(exercises.generate, seed, config.exercises))
        return train, test

    @model_validator(mode="after")
    def _has_no_columns(self) -> Self:
        if self.format.columns != Columns():
            raise ValueError("instructions.columns has no effect with kind exercises; remove it")
        return self
