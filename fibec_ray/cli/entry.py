"""Run one command of `fibec-ray`: streams, signals, one-line errors, exit code."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fibec_ray.cli.streams import ReaderGone, lasting
from fibec_ray.environment import prepare_libraries, quiet_warnings, read
from fibec_ray.errors import FibecError
from fibec_ray.garbage import large_steps
from fibec_ray.interrupts import signal_of, signals_interrupt

CANNOT_PRINT = 2
"""Exit code of a command that only prints, when its output cannot be written."""

LONGEST_WORD = 1000


def speak_utf8() -> None:
    """Restart the program in Python's UTF-8 mode if the locale has another encoding. Output keeps its encoding.

    Arrow and safetensors read every file name as UTF-8, whatever the locale.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    encoding = read("PYTHONIOENCODING") or (sys.stdout.encoding if sys.stdout else "ascii")
    environment = os.environ | {"PYTHONUTF8": "1", "PYTHONIOENCODING": encoding}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def run(parse: Callable[[], argparse.Namespace]) -> int:
    """Run a command and return its exit code: 0 success, 1 the run failed, 2 an error that the user can fix, 128 +
    the number of the signal that ended it (130: Ctrl-C). Errors are printed in one line.

    parse: returns the `command` to call, and `prints`: whether printing is all that it does.
    """
    with lasting() as (out, _), signals_interrupt(), large_steps():
        out.quits = True
        try:
            arguments = parse()
            out.quits = arguments.prints
            prepare_libraries()
            quiet_warnings()
            from fibec_ray.parts.blame import blamed

            with blamed():
                arguments.command(arguments)
            out.flush()
        except FibecError as error:
            _say(str(error))
            return error.exit_code
        except OSError as error:  # an unexpected file error; the message names the file
            where = f"{error.filename}: " if error.filename is not None else ""
            _say(f"{where}{error.strerror or error}")
            return 2
        except ReaderGone:
            return 0
        except (KeyboardInterrupt, SystemExit) as stop:
            number = signal_of(stop)
            if number is None:
                raise
            with suppress(KeyboardInterrupt):  # a second Ctrl-C while this prints
                _say("; ".join(["interrupted", *getattr(stop, "__notes__", ())]))
            return 128 + number
        return CANNOT_PRINT if arguments.prints and out.failed else 0


def _say(text: str) -> None:
    print(f"fibec-ray: {readable(one_line(text))}", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(f"fibec-ray: {text}", file=sys.stderr, flush=True)


@contextmanager
def advice(find: Callable[[], str]) -> Iterator[None]:
    """Tell the user what to do next if the block is interrupted."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if signal_of(stop) is not None:
            stop.add_note(find())
        raise


def how_to_resume(folder: Path) -> str:
    """The command that continues the run in a folder."""
    if (folder / "checkpoints" / "run.json").is_file():
        return f"resume with: fibec-ray resume {shlex.quote(str(folder))}"
    return "the run had not started; run the command again"


def one_line(text: str) -> str:
    """Put a message on one line and escape control characters, which text from files may contain."""
    words = " ".join(text.splitlines())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)


def readable(text: str) -> str:
    """Shorten very long words, such as a path of thousands of characters."""
    return " ".join(word if len(word) <= LONGEST_WORD else f"{word[:200]}...{word[-100:]}" for word in text.split(" "))
