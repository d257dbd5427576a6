"""Standard streams that never fail a command, even when their reader is gone.

A closed pipe, a full disk, a closed terminal or an ASCII-only terminal loses output but never stops the run. Control
characters in names and files are printed as escapes, so they cannot control the terminal.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

NAMES = ("stdin", "stdout", "stderr")
IN_ASCII = {"–": "-", "−": "-", "—": "-", "±": "+/-", "×": "x", "≥": ">=", "≤": "<=", "…": "...", "·": "-", "│": "|"}
"""Replacements for characters that the terminal's encoding lacks; others become backslash escapes."""
_COMMANDS = re.compile(r"\r\n|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and line feed, line separators, and marks that change the text direction."""


class ReaderGone(BaseException):
    """The reader of a command's output has gone. Like KeyboardInterrupt, it passes `except Exception`."""


def harmless(text: str) -> str:
    """Show control characters as escapes: ESC becomes the four characters \\x1b."""
    return _COMMANDS.sub(lambda found: "\n" if found[0] == "\r\n" else ascii(found[0])[1:-1], text)


def encodable(text: str, encoding: str) -> str:
    """Replace the characters that an encoding lacks."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_encodable(char, encoding) for char in text)
    return text


def _encodable(char: str, encoding: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte of a file name that is not text in the system's encoding
        return f"\\x{ord(char) & 0xFF:02x}"
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return IN_ASCII.get(char) or char.encode("ascii", "backslashreplace").decode()
    return char


class Sink:
    """A standard stream. Once a write fails, all later output is dropped."""

    def __init__(self, stream: TextIO, number: int):
        self.stream, self.name = stream, NAMES[number]
        self.lost: Exception | None = None
        self.other: Sink | None = None
        """the stream on which lost output is reported"""
        self.quits = False
        """whether to raise ReaderGone when the reader goes away"""

    def write(self, text: str) -> None:
        if self.lost is None:
            try:
                self.stream.write(encodable(text, self.stream.encoding or "utf-8"))
            except (OSError, ValueError) as error:
                self._lose(error)

    def flush(self) -> None:
        if self.lost is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._lose(error)

    @property
    def failed(self) -> bool:
        """Whether output was lost although a reader was there."""
        return self.lost is not None and not isinstance(self.lost, BrokenPipeError)

    def _lose(self, error: Exception) -> None:
        self.lost = error
        with suppress(OSError, ValueError):  # drops what is still buffered, which would fail again at exit
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        if self.failed and self.other is not None:
            reason = getattr(error, "strerror", None) or str(error)
            self.other.write(f"fibec-ray: {self.name} cannot be written ({reason}); the rest of it is lost\n")
            self.other.flush()
        if self.quits and not self.failed:
            raise ReaderGone


class Output:
    """sys.stdout or sys.stderr while a command runs."""

    def __init__(self, sink: Sink, raw: bool = False):
        self._sink, self._raw = sink, raw

    def write(self, text: str) -> int:
        self._sink.write(text if self._raw else harmless(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._sink.flush()

    @property
    def styled(self) -> Output:
        """The same stream without escaping, for control sequences written on purpose (terminal.py)."""
        return Output(self._sink, raw=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink.stream, name)


@contextmanager
def lasting() -> Iterator[tuple[Sink, Sink]]:
    """Replace sys.stdout and sys.stderr while the block runs."""
    _reserve()
    before = sys.stdout, sys.stderr
    out, err = (Sink(stream or _opened(number), number) for number, stream in enumerate(before, start=1))
    out.other, err.other = err, out
    sys.stdout, sys.stderr = cast(TextIO, Output(out)), cast(TextIO, Output(err))
    try:
        yield out, err
    finally:
        out.quits = False
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _reserve() -> None:
    """Open closed descriptors 0 to 2, or the next opened file would get one of them and receive prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(number, True)


def _opened(number: int) -> TextIO:
    """Open a stream that was closed when the program started."""
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8")
