"""The commands for sweeps: sweep, sweep-table."""

from __future__ import annotations

import argparse
from contextlib import nullcontext, suppress
from pathlib import Path

from fibec_ray.cli import entry
from fibec_ray.cli.argument_types import add_config, add_score, at_least_one, path
from fibec_ray.cli.parsing import Parsers
from fibec_ray.errors import UserError

TITLE = "sweep"


def add(parsers: Parsers) -> None:
    """Add these commands to the parser."""
    sweep = parsers.add_parser("sweep", help="run every variant and seed of a sweep, then print its table")
    add_config(
        sweep,
        "SWEEP",
        "sweep (YAML), in which task=a,b and variants=a,b pick some, and tuned=FILE takes tuned values; or an "
        "experiment with several values for some keys (method=a,b)",
        ("sweeps", "experiments"),
    )
    sweep.add_argument("--out", type=path, metavar="DIR", required=True, help="sweep directory; finished runs are kept")
    sweep.add_argument("--jobs", type=at_least_one, metavar="N", default=1, help="runs at a time (default: 1)")
    sweep.set_defaults(command=_sweep)

    table = parsers.add_parser("sweep-table", help="compare a sweep's finished runs: DIR/table.md and DIR/table.csv")
    table.add_argument("sweep", type=path, metavar="DIR", help="sweep directory")
    add_score(table)
    table.set_defaults(command=_sweep_table)


def _sweep(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.sweep_table import write_table
    from fibec_ray.cli.terminal import screen_width
    from fibec_ray.sweeps.folder import refuse_mixture
    from fibec_ray.sweeps.load import load_sweeps
    from fibec_ray.sweeps.run import refuse_failures, refuse_missing_data, run_sweep
    from fibec_ray.sweeps.tune import tuned_table

    sweeps, failures = load_sweeps(arguments.config, arguments.overrides), []
    refuse_mixture(arguments.out, sweeps)
    refuse_missing_data(sweeps, arguments.out)
    for task, sweep in sweeps.items():
        out = arguments.out / task
        with entry.advice(lambda: "the same command goes on with this sweep"):
            failures += run_sweep(sweep, out, arguments.jobs, lambda line: print(line, flush=True))
        print(write_table(out, width=screen_width()), end="", flush=True)
        if sweep.tuning:
            print(f"\n{tuned_table(sweep.tuning, out, screen_width())}", end="", flush=True)
    if any(sweep.table == "paper" for sweep in sweeps.values()):
        _print_paper_table(arguments.out, incomplete=bool(failures))
    refuse_failures(failures, sum(len(sweep.runs) for sweep in sweeps.values()))


def _print_paper_table(out: Path, incomplete: bool) -> None:
    """Print and write the tables of `fibec-ray paper-table`. incomplete: some runs failed, perhaps all."""
    from fibec_ray.analysis.paper_files import paper_files
    from fibec_ray.analysis.settings import Choices
    from fibec_ray.cli.terminal import screen_width

    with suppress(UserError) if incomplete else nullcontext():
        print(paper_files([out], Choices(), out / "tables", width=screen_width()), end="", flush=True)


def _sweep_table(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.scores import RECENT
    from fibec_ray.analysis.sweep_table import write_table
    from fibec_ray.cli.terminal import screen_width

    if arguments.score == "best" and arguments.last:
        raise UserError("--last: has no effect with --score best, which takes one evaluation; leave it out")
    print(write_table(arguments.sweep, arguments.last or RECENT, screen_width(), arguments.score), end="")
