"""Instructions and the responses to them: how a set is laid out, and how a prompt is built."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, model_validator

from fibec_ray.data.columns import plain, pylist, require_columns
from fibec_ray.data.examples import Instructions, Origin
from fibec_ray.errors import DataError

COMMON = {
    "instruction": ("instruction", "prompt", "question", "query"),
    "input": ("input", "context"),
    "response": ("response", "output", "answer", "completion", "target"),
    "category": ("category", "task", "type"),
}
"""What columns are called in the sets that are about: Dolly's, Alpaca's and others' names. The first that is there."""
OPTIONAL = ("input", "category")
MOST_CATEGORIES = 1000

PROMPT = "Below is an instruction. Write a response that does what it asks for.\n\n### Instruction:\n{instruction}\n\n"
PROMPT_WITH_INPUT = (
    "Below are an instruction and an input that it is about. Write a response that does what the instruction asks for."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
)
RESPONSE = "### Response:\n"

PLACEHOLDER = re.compile(r"\{(\w*)\}")


class Columns(BaseModel, frozen=True, extra="forbid"):
    """Names of columns. None: whichever of the common names is there; '': there is no such column."""

    instruction: str | None = Field(None, min_length=1, description="what is asked")
    input: str | None = Field(None, description="what it is asked about; may be empty in some rows")
    response: str | None = Field(None, min_length=1, description="what is to be said")
    category: str | None = Field(None, description="the kind of instruction, which partitions by label deal by")


class InstructionFormat(BaseModel, frozen=True, extra="forbid"):
    """Columns, and the prompt of each row, in the shape that Alpaca (Taori et al. 2023) made common, in other words.

    A response follows the prompt, and after it the tokenizer's end-of-text token.
    """

    columns: Columns = Columns()
    prompt: str = Field(PROMPT + RESPONSE, description="of rows without an input: {instruction}")
    prompt_with_input: str = Field(PROMPT_WITH_INPUT + RESPONSE, description="of the others: {instruction} and {input}")
    drop_empty: bool = Field(
        False, description="rows without an instruction or a response are left out; false: they are refused"
    )

    @model_validator(mode="after")
    def _placeholders(self) -> InstructionFormat:
        for field, wanted in (("prompt", ["instruction"]), ("prompt_with_input", ["input", "instruction"])):
            found = sorted(PLACEHOLDER.findall(getattr(self, field)))
            if found != wanted:
                raise ValueError(f"{field} has the placeholders {found}, it needs {wanted}, once each")
        return self


def chosen_columns(columns: Columns, there: Sequence[str], where: str) -> dict[str, str]:
    """The column of each field that there is one for. Raises DataError for one that is missing, or used twice."""
    found: dict[str, str] = {}
    for field, common in COMMON.items():
        name = getattr(columns, field)
        if name:
            require_columns(where, (name,), there, f"set data.columns.{field}")
        else:
            name = None if name == "" else next((each for each in common if each in there), None)
        if name is None and field not in OPTIONAL:
            raise DataError(
                f"{where}: no column for the {field} ({', '.join(common)}); it has {', '.join(there) or 'no columns'}; "
                f"set data.columns.{field}"
            )
        if name is not None and name in found.values():
            raise DataError(f"{where}: column '{name}' cannot be two things; set data.columns.{field} to another")
        found |= {} if name is None else {field: name}
    return found


def instructions_of(table: Any, columns: Mapping[str, str], where: str, drop_empty: bool) -> Instructions:
    """The rows of a table, categories as they come. Raises DataError for columns without text, and for empty rows."""
    texts = {field: _texts(table[name], field, f"{where}, column '{name}'") for field, name in columns.items()}
    if not table.num_rows:
        raise DataError(f"{where}: no rows; give a file with at least one")
    empty = {field: [row for row, text in enumerate(texts[field]) if not text.strip()] for field in texts}
    lacking = [(field, empty[field]) for field in texts if field != "input" and empty[field]]
    if lacking and not (drop_empty and lacking[0][0] != "category"):
        field, rows = lacking[0]
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        advice = "" if field == "category" else ", or set task.instructions.drop_empty=true to leave such rows out"
        raise DataError(
            f"{where}, column '{columns[field]}': the {field} is empty in row {rows[0]}{more}; fill it in{advice}"
        )
    count = table.num_rows
    categories = texts.get("category")
    found = Instructions(
        texts["instruction"],
        texts.get("input", [""] * count),
        texts["response"],
        np.zeros(count, np.int64),
        ("",),
        origin=Origin.of(where, count),
    )
    if categories is not None:
        names = tuple(sorted(set(categories)))
        if len(names) > MOST_CATEGORIES:
            raise DataError(
                f"{where}, column '{columns['category']}': {len(names)} different categories, at most "
                f"{MOST_CATEGORIES} can be dealt by; set data.columns.category to another column, or to '' for none"
            )
        number = {name: i for i, name in enumerate(names)}
        found = replace(found, labels=np.array([number[each] for each in categories], np.int64), categories=names)
    left = sorted(set(range(count)) - {row for _, rows in lacking for row in rows})
    if not left:
        raise DataError(f"{where}: every row is empty; name other columns")
    return found if len(left) == count else found.take(np.array(left, dtype=np.int64))


def _texts(column: Any, field: str, where: str) -> list[str]:
    """As many strings as there are rows; '' for nulls."""
    column = plain(column)
    if pa.types.is_null(column.type):
        return [""] * len(column)
    if field == "category" and pa.types.is_integer(column.type):
        return ["" if value is None else str(value) for value in column.to_pylist()]
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{where}: the values are of type {column.type}, not text; set data.columns.{field}")
    return [value or "" for value in pylist(column, where)]
