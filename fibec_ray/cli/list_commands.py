"""The commands that list what there is to choose from: methods."""

from __future__ import annotations

import argparse

from fibec_ray.cli.argument_types import RUNS_CODE, path
from fibec_ray.cli.parsing import Parsers

TITLE = "choose"


def add(parsers: Parsers) -> None:
    methods = parsers.add_parser("methods", help="list the methods")
    methods.epilog = RUNS_CODE
    methods.add_argument(
        "files", nargs="*", type=path, metavar="FILE", help="also list your own methods (YAML) and parts (Python)"
    )
    methods.set_defaults(command=_methods, prints=True)


def _methods(arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.method_table import method_table, own_parts, part_table
    from fibec_ray.config.load import load_method, method_files

    python = [file for file in arguments.files if file.suffix == ".py"]
    yaml = [file for file in arguments.files if file.suffix != ".py"]
    methods = [(file.stem, load_method(file)) for file in [*method_files(), *yaml]]
    parts = own_parts(python, [method for _, method in methods])
    method_table(methods)
    part_table(parts)
