"""The `fibec-ray` command: builds the parser from the command modules and runs one command.

Heavy imports come after parsing, so that `fibec-ray --help` answers at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial

from fibec_ray.cli import (
    check_commands,
    entry,
    job_commands,
    list_commands,
    model_commands,
    result_commands,
    run_commands,
    start_commands,
    sweep_commands,
)
from fibec_ray.cli.argument_types import settle_config
from fibec_ray.cli.completion import complete
from fibec_ray.cli.parsing import Parser, Parsers, known_command, with_settings

MODULES = (
    start_commands,
    list_commands,
    run_commands,
    check_commands,
    result_commands,
    model_commands,
    sweep_commands,
    job_commands,
)
"""In the order of the help. Each has a TITLE and a function `add(parsers)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; exit codes as in `entry.run`."""
    if argv is None:
        entry.speak_utf8()
    return entry.run(partial(_parse, argv))


def build_parser() -> tuple[Parser, Parsers]:
    """Build the parser of the command and all its subcommands."""
    root = Parser(
        prog="fibec-ray",
        usage="fibec-ray [-h] [--version] COMMAND ...",
        description="Simulate federated LoRA fine-tuning of language models on Ray.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="store_true", help="print the version and exit")
    root.set_defaults(prints=True, command=lambda _: root.print_help())
    parsers = Parsers(root)
    for module in MODULES:
        parsers.title(module.TITLE)
        module.add(parsers)
    for parser in parsers.commands.values():
        if parser.get_default("prints") is None:
            parser.set_defaults(prints=False)
    root.epilog = f"{parsers.listing}\nfibec-ray COMMAND --help says more about a command."
    return root, parsers


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Overrides may come before and after options. Raises ConfigError."""
    root, parsers = build_parser()
    complete(root, parsers)
    words = list(sys.argv[1:] if argv is None else argv)
    if (command := known_command(parsers, words)) is not None:
        words = [words[0], *with_settings(command, words[1:])]
    arguments, rest = root.parse_known_args(words)
    if getattr(arguments, "version", False):
        arguments.command = _version
        return arguments
    if command is not None and not command.takes_settings:
        rest = command.fill(arguments, rest)
    unknown = [text for text in rest if text.startswith("-") or not hasattr(arguments, "overrides")]
    if unknown:
        (command or root).error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        # argparse stops collecting overrides at the first option; those after it are in the rest
        arguments.overrides = [*arguments.overrides, *rest]
    _refuse_secrets(arguments)
    if hasattr(arguments, "config_groups"):
        settle_config(arguments)
    return arguments


def _refuse_secrets(arguments: argparse.Namespace) -> None:
    """Reject URLs with credentials before anything is opened, printed or written. Raises StorageError."""
    from fibec_ray.files.storage import refuse_secrets

    for name in ("config", "data", "folder", "sweep", "run", "out", "figures", "dest"):
        refuse_secrets(
            getattr(arguments, name, None), f"--{name}" if name in ("data", "out", "figures", "dest") else name.upper()
        )
    for run in getattr(arguments, "runs", None) or ():
        refuse_secrets(run, "RUN")
    for key, _, value in (text.partition("=") for text in getattr(arguments, "overrides", None) or ()):
        for text in re.split(r"[\[\]{}'\",\s]+", value):
            refuse_secrets(text, key)


def _version(_: argparse.Namespace) -> None:
    from importlib.metadata import version

    print(f"fibec-ray {version('fibec_ray')}")
