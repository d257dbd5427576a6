"""Base of the kinds whose samples are texts or pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from fibec_ray.data.encode import encode
from fibec_ray.data.examples import Examples
from fibec_ray.data.sets import SampleSet
from fibec_ray.encoder import Encoder
from fibec_ray.errors import DataError
from fibec_ray.models.base import AnyBackbone
from fibec_ray.tasks.base import Task, refuse_twice


class Texts(Task):
    """Samples of one text, or of a pair of texts."""

    has_texts: ClassVar[bool] = True

    text_columns: tuple[str, ...] = Field(
        ("sentence",), min_length=1, max_length=2, description="column of the text, or two columns for pairs of texts"
    )

    @property
    def typed_columns(self) -> tuple[str, ...]:
        return self.text_columns

    def rows_to_predict(self, inputs: Any, shape: tuple[int, ...]) -> Any:
        texts = split_pairs(inputs, len(self.text_columns), self.name)
        return Examples(texts[0], texts[1] if len(texts) == 2 else None, np.zeros(len(texts[0]), np.int64))

    def input_columns(self, there: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
        """The task's own columns, or the only ones that there are."""
        own = self.text_columns
        wanted = tuple(chosen) or (tuple(there) if len(there) == len(own) and not set(own) <= set(there) else own)
        if len(wanted) != len(own) or not set(wanted) <= set(there):
            raise DataError(ask_for_columns(there, len(own)))
        return wanted

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        refuse_twice(self, "text_columns")
        return self

    def about_cuts(self, sets: Sequence[SampleSet], max_length: int) -> str:
        return truncated(sets, max_length)


class ScoredTexts(Texts):
    """Texts with answers that need the scores of a classification head, because no single word expresses them."""

    template: ClassVar[str] = ""
    causal_template: ClassVar[str] = ""
    verbaliser: ClassVar[tuple[str, ...]] = ()
    pipeline: ClassVar[str | None] = "text-classification"
    per_text: ClassVar[str] = "a score for each text"
    """the scores of a text, for messages"""

    def unfit_for(self, backbone: AnyBackbone) -> str | None:
        if backbone.encode_mode == "plain":
            return None
        return (
            f"task {self.name} needs {self.per_text}; {backbone.scores_by} answers with one word; set "
            "backbone.head=mean_pool"
        )

    def encode(self, rows: Examples, encoder: Encoder) -> SampleSet:
        return encode(rows, self, encoder.tokenizer, encoder.mode, encoder.max_length)


def ask_for_columns(there: Sequence[str], count: int) -> str:
    """Message that asks which columns of a table hold the text."""
    which = "two columns" if count == 2 else "the column"
    names = " ".join(["NAME"] * count)
    return f"has the columns {', '.join(there)}; name {which} with the text: --columns {names}"


def parts_of(value: Any) -> tuple[Any, ...]:
    """The texts of one input: a text alone, or a tuple, list or array of texts; empty for everything else."""
    if isinstance(value, str):
        return (value,)
    is_several = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
    return tuple(value) if is_several else ()


def split_pairs(inputs: Sequence[Any], count: int, task: str) -> list[list[str]]:
    """One list of texts per column. Raises DataError for an input that is not `count` texts."""
    rows = [parts_of(value) for value in inputs]
    for at, row in enumerate(rows):
        if len(row) != count or not all(isinstance(text, str) for text in row):
            wanted = "a text" if count == 1 else "a pair of texts, (first, second)"
            found = "a text" if isinstance(inputs[at], str) else f"{inputs[at]!r:.60}"
            raise DataError(f"input {at}: task {task} takes {wanted} for each sample, and this is {found}")
    return [list(column) for column in zip(*rows, strict=True)]


def truncated(sets: Sequence[Any], max_length: int) -> str:
    """'3 of 100 training samples (3%) were truncated to data.max_length=64', or ''. sets: of training and of test."""
    cuts = [
        f"{part.num_cut} of {part.num_samples} {name} samples ({_percent(part.num_cut / part.num_samples)})"
        for name, part in zip(("training", "test"), sets, strict=True)
        if part.num_cut
    ]
    return f"{' and '.join(cuts)} were truncated to data.max_length={max_length}" if cuts else ""


def _percent(share: float) -> str:
    return "less than 1%" if share < 0.01 else f"{share:.0%}"
