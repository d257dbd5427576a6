"""Draws what FibecFed does in one run: the share of data that its curriculum uses, and the layers that it shares.

python analysis/figures/fibecfed.py runs/quickstart --out fibecfed.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import polars as pl
from matplotlib.figure import Figure

from fibec_ray.analysis.log import open_run
from fibec_ray.analysis.palette import PALETTE
from fibec_ray.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run directory or URL")
    parser.add_argument("--out", default="fibecfed.svg", help="a file name that ends in .svg, .pdf or .png")
    args = parser.parse_args(arguments)
    try:
        run = open_run(args.run)
    except UserError as error:
        parser.error(str(error))
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    data, layers = figure.subplots(1, 2)

    rounds = run.rounds.filter(pl.col("round") >= 0).collect()
    blue, _, _, _, orange = (entry.light for entry in PALETTE[:5])
    data.plot(rounds["round"] + 1, rounds["data_fraction"], color=blue)  # the log counts rounds from 0, figures from 1
    data.set(xlabel="round", ylabel="share of a device's data in use", ylim=(0, 1.05))

    scores = run.layers.filter(pl.col("sensitivity").is_not_null()).group_by("layer").last().sort("layer").collect()
    colours = [blue if shared else orange for shared in scores["shared"]]
    layers.bar(scores["layer"], scores["sensitivity"], color=colours)
    layers.set(xlabel="layer (blue: shared, orange: personal)", ylabel="sensitivity")

    figure.savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
