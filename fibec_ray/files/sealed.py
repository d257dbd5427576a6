"""Digests of files, and JSON files that detect changes to themselves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import write_json

M = TypeVar("M", bound=BaseModel)


def file_digest(path: Path) -> str:
    """Hash of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_sealed(path: Path, value: BaseModel) -> None:
    """Write a value's fields with their digest; the file is on the disk when this returns. Raises RunDirError."""
    content = value.model_dump(mode="json")
    write_json(path, {**content, "digest": _digest(content)})


def read_sealed(path: Path, kind: type[M], what: str) -> M:
    """Read a sealed file. Raises RunDirError if it is missing, damaged or of another kind. what: for errors."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("digest")
    except OSError as error:
        raise RunDirError(f"{path}: cannot be read ({error.strerror}); it should be {what}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunDirError(f"{path}: is damaged, or not {what} ({type(error).__name__})") from error
    if found != _digest(content):
        raise RunDirError(f"{path}: is damaged: its digest is not the one it was written with")
    return _checked(path, kind, content, what)


def _checked(path: Path, kind: type[M], content: dict[str, Any], what: str) -> M:
    known, wanted = content.get("format"), kind.model_fields["format"].default
    if known != wanted:
        raise RunDirError(f"{path}: format {known}, and this program reads format {wanted}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunDirError(f"{path}: is not {what} ({where}: {first['msg']})") from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
