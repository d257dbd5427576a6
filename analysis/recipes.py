"""Answers questions about runs from their round logs, in polars and SQL.

    python analysis/recipes.py runs/sweep          # a sweep, or any number of run directories or URLs

Copy a function and change it: it gets the runs and returns a table. docs/round-log.md has every column with its unit.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from fibec_ray.analysis.variants import Collection, collect
from fibec_ray.errors import UserError
from fibec_ray.roundlog.schema import TABLES


def small_shards(runs: Collection) -> pl.DataFrame:
    """Do devices with little data score worse?

    Personal accuracy at the last evaluation: mean of the devices with smaller shards, mean of those with larger ones,
    and the rank correlation with the shard's size.
    """
    keys = ["variant", "seed", "device"]
    shards = runs.table("devices").group_by(keys).agg(shard=pl.col("num_samples").max())
    last = runs.table("evaluations").filter(pl.col("round") == pl.col("round").max().over("variant", "seed"))
    small = pl.col("shard") <= pl.col("shard").median()
    return (
        last.filter(pl.col("accuracy").is_not_null())
        .join(shards, on=keys)
        .group_by("variant")
        .agg(
            smaller_half=pl.col("accuracy").filter(small).mean(),
            larger_half=pl.col("accuracy").filter(~small).mean(),
            rank_correlation=pl.corr("shard", "accuracy", method="spearman"),
        )
        .sort("variant")
        .collect()
    )


def difficulty(runs: Collection) -> pl.DataFrame:
    """Are the batches that a curriculum calls hard long, or badly predicted?

    Rank correlation of the first difficulty scores with loss and length, and the easiest fifth's share of the loss.
    """
    rank = pl.col("difficulty").rank() / pl.len()
    return (
        runs.table("batches")
        .filter(pl.col("round") == -1)
        .group_by("variant")
        .agg(
            batches=pl.len(),
            with_loss=pl.corr("difficulty", "loss", method="spearman"),
            with_length=pl.corr("difficulty", "length", method="spearman"),
            loss_in_easiest_fifth=pl.col("loss").filter(rank <= 0.2).sum() / pl.col("loss").sum(),
        )
        .sort("variant")
        .collect()
    )


def sql(runs: Collection) -> list[pl.DataFrame]:
    """The answers of recipes.sql, in its order."""
    text = Path(__file__).with_name("recipes.sql").read_text(encoding="utf-8")
    tables = pl.SQLContext({name: runs.table(name) for name in TABLES})
    return [tables.execute(query).collect() for query in text.split(";") if query.strip()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    try:
        runs = collect(parser.parse_args(arguments).runs)
    except UserError as error:
        parser.error(str(error))
    for answer in (small_shards(runs), difficulty(runs), *sql(runs)):
        print(answer)


if __name__ == "__main__":
    main()
