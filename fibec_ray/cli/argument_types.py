"""Types of command-line arguments, and the arguments of every command that takes an experiment.

Text that no file system or URL can have is refused here, so that no command meets it.
"""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path
from urllib.parse import urlsplit

from fibec_ray.errors import ConfigError

RUNS_CODE = (
    "A part may be your own: kind FILE.py:CLASS, beside the YAML that names it, or MODULE:CLASS. Reading a YAML that "
    "names one runs that Python code. Look at a YAML and its Python files before you run somebody else's."
)


def path(text: str) -> Path:
    """A path on this machine, whether or not anything is there; `~` is the user's home. Raises ConfigError."""
    if "\0" in text:
        raise ConfigError(f"{text!r}: no path holds a null byte")
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{text}: no such user on this machine; give the path itself") from error
    try:
        os.stat(found)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise ConfigError(f"{text}: {error.strerror}; give another path") from error
    return found


def place(text: str) -> str:
    """A path or a URL. Raises ConfigError."""
    if "://" not in text:
        return str(path(text))
    try:
        urlsplit(text)
    except ValueError as error:
        raise ConfigError(f"{text}: not a URL ({error})") from error
    if "\0" in text:
        raise ConfigError(f"{text!r}: no URL holds a null byte")
    return text


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return number


def add_runs(parser: argparse.ArgumentParser) -> None:
    what = "run directories or URLs, or sweep directories"
    parser.add_argument("runs", nargs="+", type=place, metavar="RUN", help=what)


def add_config(parser: argparse.ArgumentParser, metavar: str = "CONFIG", what: str = "experiment, a YAML file") -> None:
    parser.epilog = RUNS_CODE
    parser.add_argument("config", type=path, metavar=metavar, help=what)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example method=fedavg rounds=20")
