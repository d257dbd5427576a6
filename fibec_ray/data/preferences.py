"""Reads sets of preferences: a prompt, a chosen response and a rejected one in each row.

Three layouts are known, as in TRL: plain texts with a prompt; conversations (lists of messages with role and content)
whose last message is the response; and dialogues as plain texts that contain the prompt (HH-RLHF).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from fibec_ray.data.columns import plain, pylist, require_columns
from fibec_ray.data.conversations import Message, asked, prompt_of, reply, split_dialogues
from fibec_ray.data.examples import Origin, Pairs
from fibec_ray.errors import DataError

CATEGORIES = ("category", "source", "data_source")
"""Common names of the column of categories. The first one that a set has is used."""
MOST_CATEGORIES = 1000


class PairColumns(BaseModel, frozen=True, extra="forbid"):
    """Column names. '': no such column."""

    prompt: str | None = Field(
        None, description="column of the prompt; null: 'prompt' if the set has it, otherwise the responses contain it"
    )
    chosen: str = Field("chosen", min_length=1, description="column of the better response")
    rejected: str = Field("rejected", min_length=1, description="column of the worse response")
    category: str | None = Field(
        None, description="column of the kind of prompt; partitions by label use it; null: category or source"
    )


def chosen_columns(columns: PairColumns, there: Sequence[str], where: str) -> dict[str, str]:
    """The column of each field that the set has. Raises DataError if one is missing or used twice."""
    found: dict[str, str] = {}
    for field, common in (("prompt", ("prompt",)), ("chosen", ()), ("rejected", ()), ("category", CATEGORIES)):
        name = getattr(columns, field)
        if name:
            require_columns(where, (name,), there, f"set task.pairs.{field}")
        elif name is None:
            name = next((each for each in common if each in there), None)
        if name and name in found.values():
            raise DataError(f"{where}: column '{name}' is used for two fields; set task.pairs.{field} to another")
        found |= {field: name} if name else {}
    return found


def pairs_of(table: Any, columns: Mapping[str, str], where: str, drop_unusable: bool) -> Pairs:
    """The rows of a table. Raises DataError for values of other types, and for unusable rows."""
    if not table.num_rows:
        raise DataError(f"{where}: no rows; give a file with at least one")
    values = {field: _values(table[name], f"{where}, column '{name}'", field) for field, name in columns.items()}
    prompts, kept, triples = values.get("prompt"), [], []
    for row, (chosen, rejected) in enumerate(zip(values["chosen"], values["rejected"], strict=True)):
        try:
            triple = _triple(None if prompts is None else prompts[row], chosen, rejected)
        except ValueError as error:
            names = ", ".join(f"'{columns[field]}'" for field in ("prompt", "chosen", "rejected") if field in columns)
            raise DataError(f"{where}, columns {names}, row {row}: {error}") from error
        if why := _unusable(*triple):
            if not drop_unusable:
                raise DataError(
                    f"{where}, row {row}: {why}; correct it, or set task.drop_unusable=true to leave such rows out"
                )
            continue
        kept.append(row)
        triples.append(triple)
    if not kept:
        raise DataError(f"{where}: no row has a prompt and two different responses; name other columns")
    rows = np.array(kept, dtype=np.int64)
    labels, categories = _categories(values.get("category"), kept, f"{where}, column '{columns.get('category')}'")
    prompt, better, worse = (list(side) for side in zip(*triples, strict=True))
    origin = Origin.of(where, table.num_rows, rows)
    return Pairs(prompt, better, worse, labels, categories, origin=origin)


def _values(column: Any, where: str, field: str) -> list[Any]:
    """N texts, or N lists of messages; '' for nulls."""
    column = plain(column)
    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if field == "category" and pa.types.is_integer(kind):
        return ["" if value is None else str(value) for value in pylist(column, where)]
    if not (is_text or (is_list and field != "category")):
        wanted = "text" if field == "category" else "text or a list of messages with role and content"
        raise DataError(f"{where}: the values are of type {kind}, not {wanted}; set task.pairs.{field}")
    return ["" if value is None else value for value in pylist(column, where)]


def _triple(prompt: Any, chosen: Any, rejected: Any) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) as texts. prompt: None if there is no such column. Raises ValueError."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("one response is a text and the other one a list of messages; both must be alike")
    if not isinstance(chosen, str):
        return _conversation(prompt, _messages(chosen, "chosen"), _messages(rejected, "rejected"))
    if prompt is None:
        return split_dialogues(chosen, rejected)
    if isinstance(prompt, str):
        return prompt, chosen, rejected
    return prompt_of(_messages(prompt, "prompt")), reply(chosen), reply(rejected)


def _conversation(prompt: Any, chosen: list[Message], rejected: list[Message]) -> tuple[str, str, str]:
    """The last messages are the responses. The ones before are the prompt, or else the column of prompts has it."""
    before = chosen[:-1]
    if before != rejected[:-1]:
        raise ValueError("the two conversations differ before their last message; they must have the same prompt")
    if not before and isinstance(prompt, str):
        asking = asked(prompt) if prompt.strip() else ""
    else:
        asking = prompt_of(before or _messages(prompt or [], "prompt"))
    return asking, reply(chosen[-1]["content"]), reply(rejected[-1]["content"])


def _messages(value: Any, name: str) -> list[Message]:
    """Check a list of messages. Raises ValueError."""
    if isinstance(value, str) or not value:
        raise ValueError(f"the {name} side has no messages; it needs a list of messages with role and content")
    for message in value:
        texts = [message.get(key) for key in ("role", "content")] if isinstance(message, Mapping) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"a message of the {name} side is {message!r:.60}; it needs a role and a content, both text"
            )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _unusable(prompt: str, chosen: str, rejected: str) -> str | None:
    """Why nothing can be learnt from a row; None if it is fine."""
    for name, text in (("prompt", prompt), ("chosen response", chosen), ("rejected response", rejected)):
        if not text.strip():
            return f"the {name} is empty"
    return "both responses are the same" if chosen.strip() == rejected.strip() else None


def _categories(values: list[str] | None, kept: list[int], where: str) -> tuple[Any, tuple[str, ...]]:
    """(N,) category of each row that is kept, and the names; zeros and ("",) without a column."""
    if values is None:
        return np.zeros(len(kept), np.int64), ("",)
    if empty := [row for row in kept if not values[row].strip()]:
        raise DataError(f"{where}: the category is empty in row {empty[0]}; fill it in, or set task.pairs.category=''")
    names = tuple(sorted({values[row] for row in kept}))
    if len(names) > MOST_CATEGORIES:
        raise DataError(
            f"{where}: {len(names)} different categories, at most {MOST_CATEGORIES} are allowed; set "
            "task.pairs.category to another column, or to '' for none"
        )
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[values[row]] for row in kept], np.int64), names
