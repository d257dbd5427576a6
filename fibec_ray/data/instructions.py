"""Reads sets of instructions and responses: finds their columns and builds prompts."""

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
    "instruction": ("instruction", "prompt", "question", "query", "source"),
    "input": ("input", "context"),
    "response": ("response", "output", "answer", "completion", "target"),
    "category": ("category", "task", "type"),
}
"""Common column names (Dolly, Alpaca and others), by field. The first one that a set has is used."""
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
    """Column names. None: the first of the common names that the set has; '': no such column."""

    instruction: str | None = Field(None, min_length=1, description="column of the instruction")
    input: str | None = Field(None, description="column of the input, which may be empty in some rows")
    response: str | None = Field(None, min_length=1, description="column of the expected response")
    category: str | None = Field(None, description="column of the kind of instruction; partitions by label use it")


class InstructionFormat(BaseModel, frozen=True, extra="forbid"):
    """Columns and prompts of a set. The default prompts follow the layout of Alpaca (Taori et al. 2023).

    The response follows the prompt and ends with the tokenizer's end-of-text token.
    """

    columns: Columns = Columns()
    prompt: str = Field(PROMPT + RESPONSE, description="for rows without an input; has {instruction}")
    prompt_with_input: str = Field(
        PROMPT_WITH_INPUT + RESPONSE, description="for rows with an input; has {instruction} and {input}"
    )
    drop_empty: bool = Field(
        False, description="leave out rows without an instruction or a response; false: they are an error"
    )

    @model_validator(mode="after")
    def _placeholders(self) -> InstructionFormat:
        for field, wanted in (("prompt", ["instruction"]), ("prompt_with_input", ["input", "instruction"])):
            found = sorted(PLACEHOLDER.findall(getattr(self, field)))
            if found != wanted:
                raise ValueError(f"{field} has the placeholders {found}, it needs {wanted}, once each")
        return self


def chosen_columns(columns: Columns, there: Sequence[str], where: str) -> dict[str, str]:
    """The column of each field that the set has. Raises DataError if one is missing or used twice."""
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
            raise DataError(f"{where}: column '{name}' is used for two fields; set data.columns.{field} to another")
        found |= {} if name is None else {field: name}
    return found


def instructions_of(table: Any, columns: Mapping[str, str], where: str, drop_empty: bool) -> Instructions:
    """The rows of a table. Raises DataError for columns that are not text, and for empty rows."""
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
                f"{MOST_CATEGORIES} are allowed; set data.columns.category to another column, or to '' for none"
            )
        number = {name: i for i, name in enumerate(names)}
        found = replace(found, labels=np.array([number[each] for each in categories], np.int64), categories=names)
    left = sorted(set(range(count)) - {row for _, rows in lacking for row in rows})
    if not left:
        raise DataError(f"{where}: every row is empty; name other columns")
    return found if len(left) == count else found.take(np.array(left, dtype=np.int64))


def _texts(column: Any, field: str, where: str) -> list[str]:
    """The column as N strings; '' for nulls."""
    column = plain(column)
    if pa.types.is_null(column.type):
        return [""] * len(column)
    if field == "category" and pa.types.is_integer(column.type):
        return ["" if value is None else str(value) for value in column.to_pylist()]
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{where}: the values are of type {column.type}, not text; set data.columns.{field}")
    return [value or "" for value in pylist(column, where)]
