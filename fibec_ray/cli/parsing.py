"""The parser behind `fibec-ray`: one-line errors, help by groups of commands, settings that may be written as options.

A new command is a function `add(parsers)` in one of the modules that main.py lists, or in a new one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from fibec_ray.config.aliases import ALIASES, DTYPES, SECTIONS, is_setting
from fibec_ray.errors import ConfigError, did_you_mean


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError for bad arguments and keeps a list of its options."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self.color = False  # newer Pythons write control sequences into the help
        self.takes_value: dict[str, bool] = {"-h": False, "--help": False}
        """by option string"""
        self.arguments: list[argparse.Action] = []

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        if hasattr(self, "arguments"):  # argparse adds --help before that
            self.arguments.append(action)
            self.takes_value |= {name: action.nargs != 0 for name in action.option_strings}
        return action

    @property
    def takes_settings(self) -> bool:
        """Whether the command takes key=value."""
        return any(action.dest == "overrides" for action in self.arguments)

    def fill(self, arguments: argparse.Namespace, rest: Sequence[str]) -> list[str]:
        """Fill optional arguments without a value from the words that are left over; return the other words.

        argparse gives an optional argument no value if an option stands before it: `export RUN --to lm-eval DIR`.
        """
        left = list(rest)
        for action in self.arguments:
            empty = not action.option_strings and action.nargs == "?" and getattr(arguments, action.dest) is None
            if empty and left and not left[0].startswith("-"):
                convert = action.type if callable(action.type) else str
                setattr(arguments, action.dest, convert(left.pop(0)))
        return left

    def error(self, message: str) -> NoReturn:
        command = self.prog.partition(" ")[2]
        raise ConfigError(f"{command}: {message}; see {self.prog} --help" if command else f"{message}; see --help")


class Parsers:
    """The commands. `add_parser` adds one; `title` starts a group in the help."""

    def __init__(self, root: Parser):
        self._subparsers = root.add_subparsers(metavar="COMMAND", help=argparse.SUPPRESS)
        self.groups: dict[str, dict[str, str]] = {}
        """title -> command -> its one line"""
        self.commands: dict[str, Parser] = {}

    def title(self, title: str) -> None:
        """Start a group of commands in the help."""
        self.groups.setdefault(title, {})

    def add_parser(self, name: str, help: str, **options: Any) -> Parser:
        """help: one line without a full stop, for the list of commands and for the command's own help."""
        parser: Parser = self._subparsers.add_parser(
            name, prog=f"fibec-ray {name}", description=f"{help[:1].upper()}{help[1:]}.", **options
        )
        self.commands[name] = parser
        self.groups[next(reversed(self.groups))][name] = help
        return parser

    @property
    def listing(self) -> str:
        """List all commands by group, for the help of `fibec-ray`."""
        width = max(map(len, self.commands))
        lines = []
        for title, group in self.groups.items():
            lines += [f"{title}:", *(f"  {name:{width}}  {what}" for name, what in group.items()), ""]
        return "\n".join(lines)


def known_command(parsers: Parsers, arguments: Sequence[str]) -> Parser | None:
    """Return the parser of the command in the arguments, or None. Raises ConfigError for an unknown command."""
    first = arguments[0] if arguments else "-"
    if first.startswith("-"):
        return None
    if first not in parsers.commands:
        raise ConfigError(f"no such command '{first}'; {did_you_mean(first, parsers.commands)}")
    return parsers.commands[first]


def with_settings(parser: Parser, arguments: Sequence[str]) -> Iterator[str]:
    """Rewrite `--rounds 3` and `--rounds=3` as `rounds=3` in the arguments of one command.

    Raises ConfigError for an option that is neither the command's own nor a setting.
    """
    rest = iter(arguments)
    for text in rest:
        name, sign, value = text.partition("=")
        if text == "--":
            yield from (text, *rest)
        elif not name.startswith("--"):
            yield text
        elif name in parser.takes_value:
            yield text
            if parser.takes_value[name] and not sign and (following := next(rest, None)) is not None:
                yield following
        else:
            key = _setting(parser, name)
            found = value if sign else "true" if key in DTYPES else next(rest, None)
            if found is None or (not sign and found.startswith("--")):
                raise ConfigError(f"{name}: expected a value, such as {key}=VALUE")
            yield f"{key}={found}"


def _setting(parser: Parser, option: str) -> str:
    key = option[2:].replace("-", "_")
    settings = {f"--{name}" for name in (*SECTIONS, *ALIASES, *DTYPES)}
    if parser.takes_settings and is_setting(key):
        return key
    known = parser.takes_value.keys() - {"-h"}
    near = did_you_mean(option, known | settings if parser.takes_settings else known)
    if near.startswith("allowed"):
        near = did_you_mean(option, known)
    raise ConfigError(f"{option}: no such option; {near}")
