"""The command `fibec-ray paper-table` and its options."""

from __future__ import annotations

import argparse

from fibec_ray.cli.argument_types import add_runs, path
from fibec_ray.cli.parsing import Parser


def add_paper_table(parser: Parser) -> None:
    """Add the arguments of `fibec-ray paper-table`."""
    add_runs(parser)
    parser.add_argument("--reference", metavar="NAME", help="compare with this variant (default: the sweep's own)")
    parser.add_argument("--only", metavar="NAMES", help="variants to show, separated by commas (default: all)")
    parser.add_argument(
        "--target", type=float, metavar="X", help="score to reach (default: 95 %% of the reference's best, per task)"
    )
    parser.add_argument("--model", choices=("personal", "global"), help="which score (default: personal if logged)")
    parser.add_argument(
        "--score",
        choices=("best", "last"),
        default="best",
        help="score to compare: the highest evaluation, or the mean of the last 3 (default: best)",
    )
    parser.add_argument("--with-setup", action="store_true", help="include the time of the initialisation phase")
    parser.add_argument("--format", choices=("markdown", "csv", "latex"), default="markdown", help="default: markdown")
    parser.add_argument("--out", type=path, metavar="DIR", help="also write the tables and the figure there")
    parser.set_defaults(command=_paper_table, prints=True)


def _paper_table(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.paper_files import paper_files
    from fibec_ray.analysis.settings import Choices
    from fibec_ray.cli.terminal import screen_width

    only = tuple(name for part in (arguments.only or "").split(",") if (name := part.strip()))
    choices = Choices(
        arguments.reference, only, arguments.target, arguments.model, arguments.score, arguments.with_setup
    )
    print(paper_files(arguments.runs, choices, arguments.out, arguments.format, screen_width()), end="")
