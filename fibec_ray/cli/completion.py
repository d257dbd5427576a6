"""Answers the shell when the user presses TAB, through argcomplete."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fibec_ray import environment
from fibec_ray.cli.parsing import Parser, Parsers
from fibec_ray.config.aliases import ALIASES, DTYPES, SECTIONS
from fibec_ray.config.names import GROUPS, own, packaged


def complete(root: Parser, parsers: Parsers) -> None:
    """Print completions and exit if the shell asked for them; else return at once."""
    if environment.read("_ARGCOMPLETE") is None:
        return
    import argcomplete

    for parser in parsers.commands.values():
        for action in parser.arguments:
            if action.dest == "config":
                action.completer = _configs(parser)  # type: ignore[attr-defined]
            elif action.dest == "overrides":
                action.completer = _settings  # type: ignore[attr-defined]
    argcomplete.autocomplete(root, always_complete_options="long")


def _configs(parser: Parser) -> Any:
    from argcomplete.completers import FilesCompleter

    files = FilesCompleter(allowednames=("yaml", "yml"))
    names = [name for group in parser.get_default("config_groups") for name in packaged(group)]
    return lambda prefix, **more: [*names, *files(prefix, **more)]


def _settings(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterator[str]:
    """Complete `method=fi` to method=fibecfed, method=fipa ...; without `=`, complete names of settings."""
    key, sign, _value = prefix.partition("=")
    if sign and key in GROUPS:
        config = getattr(parsed_args, "config", None)
        folder = Path(config).parent if config else Path()
        yield from (f"{key}={name}" for name in {**packaged(GROUPS[key]), **own(GROUPS[key], folder)})
    elif not sign:
        yield from (f"{name}=" for name in (*SECTIONS, *ALIASES, *DTYPES))
