"""Finds the text and label columns of a table by their names, then by what they hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fibec_ray.data.columns import plain
from fibec_ray.errors import DataError

TEXTS = tuple(
    tuple(names.split())
    for names in (
        "text texts sentence full_text raw_text",
        "review reviews content comment body message tweet utterance document post email sms article feedback"
        " description abstract passage paragraph question query input inputs note notes transcript complaint ticket",
        "title headline subject summary name",
    )
)
"""Normalised names of text columns, the surest first. In a tier there must be one, else the user is asked."""
LABELS = tuple(
    tuple(names.split())
    for names in (
        "label labels gold_label class_label",
        "class target y sentiment category intent classes gold label_id class_id",
        "topic rating stars polarity emotion score spam is_spam toxic answer type tag genre group department priority"
        " status outcome fine_label coarse_label overall",
    )
)
PAIRS: tuple[tuple[str, str], ...] = (
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("query", "passage"),
    ("query", "document"),
    ("claim", "evidence"),
)
TEXT_WORDS = ("text", "sentence", "review", "content", "comment", "message", "tweet", "question")
LABEL_WORDS = ("label", "class", "category", "sentiment", "target", "intent")
"""Last words of longer names: `airline_sentiment`, `news category`."""
USERS = ("user_id", "user", "userid", "author", "author_id", "client_id", "client", "speaker", "worker_id", "device_id")
"""Columns that are likely to name who wrote a row."""
_FIRST = re.compile(r"(text|sentence|question|s|q|input|string|sent|passage)_?(1|a)")
_SECOND = {"1": "2", "a": "b"}


def normalised(name: str) -> str:
    """A column name in a common form: 'Review Text' -> 'review_text'."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip()).casefold()).strip("_")


@dataclass(frozen=True)
class Roles:
    """Columns by purpose. texts: one, or two for pairs; empty: not known. label: None: not known."""

    texts: tuple[str, ...]
    label: str | None


def by_names(there: Sequence[str], texts: tuple[str, ...] | None, label: str | None, others: Collection[str]) -> Roles:
    """What the names alone tell. texts, label: set by the user. others: columns that have another use."""
    taken = {*(texts or ()), *others, *([label] if label else [])}
    free = {normalised(name): name for name in reversed(there) if name not in taken and there.count(name) == 1}
    label = label or _by_tier(free, LABELS) or _by_ending(free, LABEL_WORDS)
    free = {key: name for key, name in free.items() if name != label and "label" not in key.split("_")}
    texts = texts or _pair(free) or _one(_by_tier(free, TEXTS) or _by_ending(free, TEXT_WORDS))
    return Roles(texts, label)


def by_content(table: Any, roles: Roles, others: Collection[str]) -> Roles:
    """Fills the roles that the names left open from the values, where there is exactly one candidate.

    table: with every column that may be one of them.
    """
    names = [name for name in table.column_names if name not in {*roles.texts, *others, roles.label}]
    columns = {name: plain(table[name]) for name in names}
    label, texts = roles.label, roles.texts
    if not texts:
        prose = [name for name in names if _is_prose(columns[name])]
        texts = (prose[0],) if len(prose) == 1 else ()
    if label is None:
        classes = [name for name in names if name not in texts and not _is_id(name) and _has_classes(columns[name])]
        label = classes[0] if len(classes) == 1 else None
    return Roles(texts, label)


def refuse_unknown(roles: Roles, there: Sequence[str], where: str, has_header: bool) -> None:
    """Raises DataError with the question that the user has to answer."""
    missing = [what for what, found in (("text", roles.texts), ("label", roles.label)) if not found]
    if has_header and any(_is_value(name) for name in roles.texts):
        raise DataError(
            f"{where}: the first line looks like data, not like column names ({', '.join(map(_short, there[:4]))}); "
            "set data.header=false (the columns are then f0, f1, ...), or add a first line with names"
        )
    if not missing:
        return
    example = " ".join({"text": "data.text=COLUMN", "label": "data.label=COLUMN"}[what] for what in missing)
    pair = " (two for pairs: data.text=[A,B])" if "text" in missing else ""
    shown = ", ".join(map(_short, there[:20])) + (" ..." if len(there) > 20 else "")
    no_header = has_header and any(_is_value(name) for name in there)
    advice = "; if the first line is data and not names, set data.header=false" if no_header else ""
    raise DataError(
        f"{where}: cannot tell which column is the {' and which is the '.join(missing)}; name "
        f"{'it' if len(missing) == 1 else 'them'}: {example}{pair}; the columns are {shown or 'none'}{advice}"
    )


def _one(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


def _pair(free: dict[str, str]) -> tuple[str, ...]:
    for first, second in PAIRS:
        if first in free and second in free:
            return free[first], free[second]
    for key, name in free.items():
        if (match := _FIRST.fullmatch(key)) and (other := key[:-1] + _SECOND[match[2]]) in free:
            return name, free[other]
    return ()


def _by_tier(free: dict[str, str], tiers: tuple[tuple[str, ...], ...]) -> str | None:
    for tier in tiers:
        if found := [name for name in tier if name in free]:
            return free[found[0]] if len(found) == 1 or tier is tiers[0] else None
    return None


def _by_ending(free: dict[str, str], words: tuple[str, ...]) -> str | None:
    """The one column with such a last word, after the surest word that there is."""
    for word in words:
        if found := [name for key, name in free.items() if key.split("_")[-1] == word]:
            return found[0] if len(found) == 1 else None
    return None


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:40]}...")


def _is_value(name: str) -> bool:
    """A header that looks like data: a number, or a sentence."""
    return name.strip().isdigit() or len(name.split()) > 4


def _is_id(name: str) -> bool:
    return normalised(name) in USERS or normalised(name).split("_")[-1] in ("id", "index", "")


def _is_prose(column: Any) -> bool:
    """Strings, most of them different and of three words or more."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) or not len(column):
        return False
    spaces = pc.mean(pc.count_substring(column, " ")).as_py()
    return (spaces or 0) >= 2 and pc.count_distinct(column).as_py() * 2 > len(column)


def _has_classes(column: Any) -> bool:
    """2 to 50 different values, each several times on average; no fractions."""
    if pa.types.is_nested(column.type) or pa.types.is_temporal(column.type) or pa.types.is_binary(column.type):
        return False
    if pa.types.is_floating(column.type) and not pc.all(pc.equal(column, pc.floor(column))).as_py():
        return False
    count = pc.count_distinct(column).as_py()
    return 2 <= count <= 50 and count * 2 <= len(column)
