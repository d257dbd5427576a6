"""Draws a score over what it cost: a line per method, means over seeds; bars go from the lowest seed to the highest.

    python analysis/figures/score_over_cost.py runs/trec                       # personal accuracy over simulated time
    python analysis/figures/score_over_cost.py runs/fipa-regression --x round --y global_metric --bottom -0.2

RUNS are sweeps or run directories; --x and --y are columns of `rounds` (docs/round-log.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from fibec_ray.analysis.palette import entry
from fibec_ray.analysis.variants import collect
from fibec_ray.errors import UserError
from fibec_ray.roundlog.schema import TABLES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    columns = TABLES["rounds"].names
    parser.add_argument("--x", default="sim_time_s", choices=columns, metavar="COST", help="bytes_total, round ...")
    parser.add_argument("--y", default="personal_accuracy", choices=columns, metavar="SCORE", help="global_metric ...")
    parser.add_argument("--bottom", type=float, help="lowest score to show")
    parser.add_argument("--out", default="score_over_cost.svg", help="a file name that ends in .svg, .pdf or .png")
    args = parser.parse_args(arguments)
    try:
        runs = collect(args.runs)
    except UserError as error:
        parser.error(str(error))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    points = runs.table("rounds").filter(pl.col(args.y).is_not_null(), pl.col("round") >= 0)
    y = pl.col(args.y)
    lines = (
        points.group_by("variant", "round", maintain_order=True)
        .agg(x=pl.col(args.x).mean(), mean=y.mean(), low=y.min(), high=y.max())
        .collect()
    )
    for at, ((variant,), line) in enumerate(lines.group_by("variant", maintain_order=True)):
        look, mean = entry(at), line["mean"]
        xs = line["x"] + 1 if args.x == "round" else line["x"]  # the log counts rounds from 0, figures from 1
        dash = (0, look.dash) if look.dash else "-"
        axes.plot(xs, mean, color=look.light, linestyle=dash, marker=look.marker, markersize=5, label=variant)
        axes.errorbar(xs, mean, [mean - line["low"], line["high"] - mean], color=look.light, fmt="none", capsize=2)
    axes.set(xlabel=args.x, ylabel=args.y)
    axes.set_ylim(bottom=args.bottom)
    axes.legend(frameon=False)
    figure.savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
