"""The commands that read finished and running runs: report, compare, runs, watch."""

from __future__ import annotations

import argparse
from pathlib import Path

from fibec_ray.cli.argument_types import add_runs, add_score, path
from fibec_ray.cli.paper_table_options import add_paper_table
from fibec_ray.cli.parsing import Parser, Parsers
from fibec_ray.cli.report_options import add_report

TITLE = "look at results"


def add(parsers: Parsers) -> None:
    """Add these commands to the parser."""
    report = parsers.add_parser("report", help="draw runs as one HTML page, and as figures for a paper")
    add_runs(report)
    add_report(report)

    _add_compare(parsers.add_parser("compare", help="print tables: scores, cost to reach a target, differences"))

    add_paper_table(parsers.add_parser("paper-table", help="print one variant's lead and speed-up over the others"))

    runs = parsers.add_parser("runs", help="list the runs in a folder: status, progress, best score")
    runs.add_argument("folder", nargs="?", type=path, metavar="DIR", default=Path("runs"), help="default: runs")
    runs.set_defaults(command=_runs, prints=True)

    watch = parsers.add_parser("watch", help="follow a run live until it ends")
    watch.add_argument("run", type=path, metavar="RUN", help="run directory")
    watch.set_defaults(command=_watch, prints=True)


def _add_compare(parser: Parser) -> None:
    add_runs(parser)
    parser.add_argument(
        "--reference", metavar="NAME", help="compare with this variant (default: the sweep's, or the first)"
    )
    parser.add_argument("--target", type=float, action="append", metavar="X", help="score to reach; may be repeated")
    parser.add_argument("--model", choices=("personal", "global"), help="which score (default: personal if logged)")
    add_score(parser)
    parser.add_argument("--format", choices=("markdown", "csv", "latex"), default="markdown", help="default: markdown")
    parser.add_argument("--out", type=path, metavar="DIR", help="also write compare.md, compare.tex and CSVs there")
    parser.add_argument("--anyway", action="store_true", help="compare runs of different data, partition or model")
    parser.set_defaults(command=_compare, prints=True)


def _compare(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.compare import Choices, compare_runs, write_all, written
    from fibec_ray.analysis.scores import RECENT
    from fibec_ray.cli.terminal import screen_width

    targets, recent = tuple(arguments.target or ()), arguments.last or RECENT
    choices = Choices(arguments.reference, targets, arguments.model, recent, arguments.anyway, arguments.score)
    tables = compare_runs(arguments.runs, choices)
    if arguments.out:
        write_all(tables, arguments.out)
    print(written(tables, arguments.format, screen_width()), end="")


def _runs(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.listing import listing
    from fibec_ray.cli.terminal import screen_width

    print(listing(arguments.folder, screen_width()))


def _watch(arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.watch import watch

    watch(arguments.run)
