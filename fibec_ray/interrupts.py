"""Raises signals that ask the process to end as KeyboardInterrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn

NUMBERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""SIGHUP: the terminal was closed. Windows has no SIGHUP."""


class Terminated(KeyboardInterrupt):
    """A signal that ends the process as Ctrl-C does: files are closed, what is done is kept."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated inside the block. A signal that is ignored (nohup) stays ignored."""
    with ExitStack() as undo:
        if threading.current_thread() is threading.main_thread():  # handlers cannot be set elsewhere
            for number in NUMBERS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    undo.callback(signal.signal, number, signal.signal(number, _terminate))
        yield


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Puts signals_interrupt's handlers back after a block that replaces them. May decorate a function.

    ray.init has handlers of its own, one of them in C++: it prints a stack and aborts the process 3 s after a SIGTERM.
    """
    before = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in (number for number, handler in before.items() if handler is _terminate):
                signal.signal(number, _terminate)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(number)


def signal_of(stop: BaseException) -> int | None:
    """The signal that ended a block, or None if none did. Ray's own handler of SIGTERM raises SystemExit(15)."""
    if isinstance(stop, Terminated):
        return stop.number
    if isinstance(stop, KeyboardInterrupt):
        return int(signal.SIGINT)
    return int(signal.SIGTERM) if isinstance(stop, SystemExit) and stop.code == signal.SIGTERM else None
