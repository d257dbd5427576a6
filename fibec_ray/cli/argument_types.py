"""Types of command-line arguments, and the arguments that commands on experiments share.

Text that cannot be a path or a URL is rejected here, before a command runs.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from fibec_ray.cli.parsing import Parser
from fibec_ray.config.names import OWN, config_folder, find_config
from fibec_ray.errors import ConfigError

RUNS_CODE = (
    "A YAML file can name parts of your own: kind FILE.py:CLASS, relative to the YAML, or MODULE:CLASS. Reading such a "
    "YAML runs that Python code, so look at files from other people before you use them."
)
RUNS_SAVED_CODE = "If the run uses parts of your own, this runs the Python files saved in RUN/parts."


def path(text: str) -> Path:
    """Parse a path, which need not exist; `~` is the user's home. Raises ConfigError, also for a URL."""
    if "://" in text:
        from fibec_ray.files.storage import refuse_secrets

        refuse_secrets(text, "PATH")
        raise ConfigError(f"{text}: a path on this machine is needed here, and this is a URL; give a path")
    if "\0" in text:
        raise ConfigError(f"{text!r}: a path cannot contain a null byte; remove it")
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
    """Parse a path or a URL. Raises ConfigError."""
    if "://" not in text:
        return str(path(text))
    try:
        urlsplit(text)
    except ValueError as error:
        raise ConfigError(f"{text}: not a URL ({error})") from error
    if "\0" in text:
        raise ConfigError(f"{text!r}: a URL cannot contain a null byte; remove it")
    return text


def at_least_one(text: str) -> int:
    """Read a whole number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return number


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the argument RUN ... of commands that take several runs."""
    what = "run directories or URLs, or sweep directories"
    parser.add_argument("runs", nargs="+", type=place, metavar="RUN", help=what)


def add_score(parser: argparse.ArgumentParser) -> None:
    """Add the options for the evaluations that a run's score is made from."""
    parser.add_argument(
        "--score",
        choices=("last", "best"),
        default="last",
        help="score to compare: the mean of the last N evaluations, or the highest one (default: last)",
    )
    parser.add_argument("--last", type=at_least_one, metavar="N", help="evaluations in the mean (default: 3)")


def add_config(
    parser: Parser,
    metavar: str = "CONFIG",
    what: str = "experiment: a name (`fibec-ray configs`) or a YAML file; default: ./experiment.yaml",
    groups: tuple[str, ...] = ("experiments",),
) -> None:
    """Add the experiment and its overrides. After parsing, main.py calls `settle_config`."""
    parser.epilog = RUNS_CODE
    parser.add_argument("config", nargs="?", metavar=metavar, help=what)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example method=fedavg rounds=20 lr=1e-3")
    parser.add_argument(
        "--data",
        type=place,
        metavar="PATH",
        help="your own texts: a CSV, TSV, JSON or Parquet file, or a folder; short for data.path=PATH. CONFIG is then "
        "./experiment.yaml, or else the packaged own-data.yaml",
    )
    parser.set_defaults(config_groups=groups)


def settle_config(arguments: argparse.Namespace) -> None:
    """Turn `config` into the Path of a file. If it looks like an override, it becomes one. Raises ConfigError."""
    text = arguments.config
    if text is not None and "=" in text and ("://" in text or not path(text).exists()):
        arguments.overrides = [text, *arguments.overrides]
        text = None
    if arguments.data is not None:
        arguments.overrides = [f"data.path={json.dumps(arguments.data)}", *arguments.overrides]
        if text is None and not Path(OWN).is_file():
            arguments.config = config_folder() / "own-data.yaml"
            return
    arguments.config = find_config(str(path(text)) if text else text, arguments.config_groups)
