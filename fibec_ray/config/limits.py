"""Reject YAML that is oversized (alias bombs), recursive or unprintable, before anything is built from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from fibec_ray.errors import ConfigError
from fibec_ray.files.storage import refuse_secrets

MOST_VALUES = 100_000
DEEPEST = 60
LARGEST = 2**63 - 1


def refuse_nonsense(raw: Any, where: str, keys: Sequence[str] = ()) -> None:
    """Reject oversized or recursive values, huge integers, nan and unprintable text. Raises ConfigError.

    Raises StorageError for a URL with credentials under any key, because errors, logs and runs repeat values.

    where: the file, or ''. keys: the path of the value.
    """
    for count, (path, value) in enumerate(_walk(raw, tuple(keys))):
        for text in value if isinstance(value, dict) else (value,):
            if isinstance(text, str):
                refuse_secrets(text, ": ".join(part for part in (where, ".".join(path)) if part) or "the configuration")
        complaint = _complaint(value)
        if count >= MOST_VALUES:
            path, complaint = path[:1], f"has more than {MOST_VALUES} values, aliases included; shorten it"
        if len(path) > DEEPEST:
            path, complaint = path[:3], f"is nested more than {DEEPEST} deep; write it flatter"
        if complaint is not None:
            raise ConfigError(": ".join(part for part in (where, ".".join(path), complaint) if part))


def refuse_flags(raw: Any, meant: Any, where: str) -> None:
    """Reject `true` where a number is expected. Raises ConfigError. meant: the validated values."""
    if isinstance(raw, bool) and isinstance(meant, int | float) and not isinstance(meant, bool):
        raise ConfigError(f"{where}: expected a number, found {str(raw).lower()}")
    if isinstance(raw, dict) and isinstance(meant, dict):
        for key, below in raw.items():
            refuse_flags(below, meant.get(key), f"{where}.{key}" if where else str(key))


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value and its path, depth first, down to one level below the limit."""
    yield path, value
    if len(path) > DEEPEST:
        return
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _walk(below, (*path, _printable(str(key))))
            if not isinstance(key, str):
                yield (*path, _printable(str(key))), _OddKey(repr(key))
    elif isinstance(value, list | tuple | set):
        for i, below in enumerate(value):
            yield from _walk(below, (*path, str(i)))


class _OddKey(str):
    """A key that is not a string."""


def _complaint(value: Any) -> str | None:
    if isinstance(value, _OddKey):
        return f"the key {value} is not a string; put it in quotes or remove it"
    if isinstance(value, float) and math.isnan(value):
        return "found nan; give a number"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"found an integer of {value.bit_length()} bits; at most 63 are allowed"
    if isinstance(value, str) and (value != _printable(value)):
        odd = next(char for char in value if _unprintable(char))
        return f"has the character {odd!r}, which cannot be written; remove it"
    return None


def _printable(text: str) -> str:
    return "".join(char for char in text if not _unprintable(char))


def _unprintable(char: str) -> bool:
    """Whether a character is a control character or a lone surrogate; line ends and tabs are allowed."""
    return (ord(char) < 32 and char not in "\n\r\t") or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000
