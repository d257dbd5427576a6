"""The commands that list what there is to choose from: configs, methods, tasks, backbones."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from fibec_ray.cli.argument_types import RUNS_CODE, path
from fibec_ray.cli.parsing import Parsers

TITLE = "choose"
MORE = {
    "configs": "Run one: fibec-ray run NAME, with changes such as rounds=20. Your own: fibec-ray init DIR",
    "methods": "Use one: method=NAME. All of them: fibec-ray methods --all. Their parts: fibec-ray methods --wide. "
    "When to use which: docs/methods.md",
    "tasks": "Use one: task=NAME, with data.path=FOLDER for local files.",
    "backbones": "Use one: backbone=NAME, or backbone.name= a hub id or a local folder.",
}
"""The line below each list."""


def add(parsers: Parsers) -> None:
    """Add these commands to the parser."""
    for group, what in (
        ("configs", "list the experiments and sweeps to start from"),
        ("methods", "list the methods, by what they are for"),
        ("tasks", "list the data sets"),
        ("backbones", "list the base models"),
    ):
        parser = parsers.add_parser(group, help=what)
        parser.add_argument("--wide", action="store_true", help="print a table with more columns")
        parser.add_argument("--json", action="store_true", help="print plain values")
        if group == "methods":
            parser.epilog = RUNS_CODE
            parser.add_argument("--all", action="store_true", help="also list ablations and variants, one line each")
            parser.add_argument(
                "files", nargs="*", type=path, metavar="FILE", help="also list your methods (YAML) and parts (Python)"
            )
        parser.set_defaults(command=_methods if group == "methods" else partial(_list, group), prints=True)


def _list(group: str, arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.catalogue import entries, plain, print_list
    from fibec_ray.cli.method_table import entry_table

    found = entries(group)
    if arguments.json:
        _print_json([plain(entry) for entry in found])
    elif arguments.wide:
        entry_table(found)
    else:
        print_list(found, MORE[group])


def _methods(arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.catalogue import OWN, Entry, entries, print_list
    from fibec_ray.errors import ConfigError

    if arguments.all and (arguments.json or arguments.wide):
        raise ConfigError("methods: --all has no effect with --wide or --json, which list every method; leave it out")
    python = [file for file in arguments.files if file.suffix == ".py"]
    yaml = [Entry(file.stem, OWN, str(file), file) for file in arguments.files if file.suffix != ".py"]
    found = [*entries("methods"), *yaml]
    if arguments.json or arguments.wide or arguments.files:
        _loaded_methods(arguments, found, python)
    if not arguments.json and not arguments.wide:
        print_list(found, MORE["methods"], folded=not arguments.all)


def _loaded_methods(arguments: argparse.Namespace, found: list[Any], python: list[Any]) -> None:
    """Load the methods and print them. This runs the Python code of user-defined parts."""
    from fibec_ray.cli.method_table import as_json, method_table, own_parts, part_table
    from fibec_ray.config.load import load_method

    methods = {entry: load_method(entry.file) for entry in found}
    parts = own_parts(python, list(methods.values()))
    if arguments.json:
        _print_json([as_json(entry, method) for entry, method in methods.items()])
        return
    if arguments.wide:
        method_table([(entry.name, method) for entry, method in methods.items()])
    part_table(parts)


def _print_json(values: Any) -> None:
    import json

    print(json.dumps(values, indent=2))
