"""Turns exceptions in a user's own part into one line with the file name and line number."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from fibec_ray.errors import FibecError, RunError
from fibec_ray.parts.own import Source


def what_failed(error: BaseException) -> str:
    """Describe an error in one line, such as 'my_rules.py, line 12: ValueError: ...'.

    The file and line are left out if the traceback has no code of a user's own part.
    """
    if isinstance(error, ValidationError) and error.errors()[0]["type"] == "frozen_instance":
        return (
            f"{_place(error)}sets {error.errors()[0]['loc'][0]} on a part, and parts are frozen; keep the value in "
            "the memory (on a device) or the state (on the server) that hooks receive and return"
        )
    return f"{_place(error)}{type(error).__name__}: {str(error) or 'no message'}"


@contextmanager
def blamed() -> Iterator[None]:
    """Raise RunError for exceptions from a user's own part. Other exceptions pass unchanged: they are bugs of the
    package.
    """
    try:
        yield
    except FibecError:
        raise
    except Exception as error:
        if not _place(error):
            raise
        raise RunError(what_failed(error)) from error


def _place(error: BaseException) -> str:
    """'FILE, line N: ' of the innermost frame that runs a user's own part; '' if there is none."""
    sources = [(frame.f_globals.get("__own_source__"), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    places = [f"{source.name}, line {line}: " for source, line in sources if isinstance(source, Source)]
    return places[-1] if places else ""
