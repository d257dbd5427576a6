"""Ranks methods over several tasks: a table, and a critical-difference diagram (Friedman test, then Nemenyi's).

    python analysis/figures/ranks.py runs/benchmark
    python analysis/figures/ranks.py runs/benchmark --only fedavg,fedex-lora,ffa-lora --blocks task --out ranks.svg

RUNS are sweeps, or folders of sweeps such as the tasks of one `fibec-ray sweep`. Methods are ranked within each block:
one task and seed, or one task with its mean over seeds. Writes the diagram, and the table beside it (.md and .csv).
Needs `pip install "fibec_ray[benchmark]"`. docs/benchmark.md says what ranks do not show.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from fibec_ray.analysis.compare_tables import cost_text
from fibec_ray.analysis.files import replace_file
from fibec_ray.analysis.formats import Column, Row, Table, as_csv, markdown
from fibec_ray.analysis.numbers import RunNumbers
from fibec_ray.analysis.settings import Choices, Setting, settings_of
from fibec_ray.errors import UserError

LEVEL = 0.05
"""of both tests"""
Blocks = Literal["seed", "task"]
COSTS = {"num_bytes": 1e6, "flops": 1e12, "sim_time_s": 1.0}


@dataclass(frozen=True)
class Ranking:
    """Scores and ranks of methods over the complete blocks. N blocks, k methods."""

    names: tuple[str, ...]
    """the methods, best mean rank first"""
    scores: np.ndarray
    """(N, k)"""
    ranks: np.ndarray
    """(N, k): 1 is the best of its block, ties share a rank"""
    costs: Mapping[str, np.ndarray]
    """(N, k) by field of `RunNumbers`: totals of runs"""
    num_left_out: int
    """blocks in which a method has no score"""
    missing: Mapping[str, int]
    """{method: blocks in which it has no score}"""

    @property
    def p_value(self) -> float:
        """Of Friedman's test, that all methods are equal; NaN if all scores are."""
        return math.nan if np.ptp(self.ranks) == 0 else float(friedmanchisquare(*self.scores.T).pvalue)

    @property
    def critical_difference(self) -> float:
        """Two mean ranks further apart than this differ, by Nemenyi's test."""
        num_blocks, num_methods = self.scores.shape
        quantile = float(studentized_range.ppf(1 - LEVEL, num_methods, np.inf)) / math.sqrt(2)
        return quantile * math.sqrt(num_methods * (num_methods + 1) / (6 * num_blocks))


def ranking_of(settings: Sequence[Setting], choices: Choices, blocks: Blocks = "seed") -> Ranking:
    """Rank methods in every block in which all of them have a score.

    Raises UserError for fewer than 3 methods or 2 complete blocks.
    """
    names = list(dict.fromkeys(line.variant for each in settings for line in each.comparison.lines if line.runs))
    if len(names) < 3:
        raise UserError(
            f"{len(names)} variants ({', '.join(names)}): ranks need 3 or more; name more sweeps or variants"
        )
    found = [block for setting in settings for block in _blocks(setting, choices, blocks)]
    complete = [block for block in found if block.keys() == set(names)]
    missing = Counter(name for block in found for name in names if name not in block)
    if len(complete) < 2:
        lacking = ", ".join(f"{name} ({count})" for name, count in missing.most_common(5)) or "none"
        raise UserError(
            f"{len(complete)} complete blocks of {len(found)}: ranks need 2 or more; variants without a score: "
            f"{lacking}; run more tasks or seeds, or leave variants out with --only"
        )
    scores = np.array([[block[name][0] for name in names] for block in complete])
    ranks = np.stack([rankdata(-row) for row in scores])
    order = np.argsort(ranks.mean(0), kind="stable")
    costs = {key: np.array([[block[name][1][key] for name in names] for block in complete]) for key in COSTS}
    return Ranking(
        tuple(names[at] for at in order),
        scores[:, order],
        ranks[:, order],
        {key: values[:, order] for key, values in costs.items()},
        len(found) - len(complete),
        {name: missing[name] for name in names if missing[name]},
    )


Block = dict[str, tuple[float, dict[str, float]]]
"""{method: its score and costs}; without methods that have no finite score."""


def _blocks(setting: Setting, choices: Choices, blocks: Blocks) -> list[Block]:
    seeds = sorted({seed for line in setting.comparison.lines for seed in line.runs})
    return [_block(setting, choices, each) for each in ([[seed] for seed in seeds] if blocks == "seed" else [seeds])]


def _block(setting: Setting, choices: Choices, seeds: Sequence[int]) -> Block:
    block: Block = {}
    for line in setting.comparison.lines:
        runs = [line.runs[seed] for seed in seeds if seed in line.runs]
        scores = [_score(run, setting, choices) for run in runs]
        known = [score for score in scores if score is not None]
        if len(known) == len(seeds):
            block[line.variant] = (fmean(known), {key: fmean(getattr(run, key) for run in runs) for key in COSTS})
    return block


def _score(run: RunNumbers, setting: Setting, choices: Choices) -> float | None:
    score = run.picked(setting.model, choices.pick)
    return score if score is not None and math.isfinite(score) else None


def table_of(ranking: Ranking, choices: Choices, blocks: Blocks) -> Table:
    """The methods with mean rank, mean score and what they cost, best first."""
    rows = tuple(
        {
            "variant": name,
            "mean_rank": float(ranking.ranks[:, at].mean()),
            "mean_score": float(ranking.scores[:, at].mean()),
            **{key: float(values[:, at].mean()) for key, values in ranking.costs.items()},
        }
        for at, name in enumerate(ranking.names)
    )
    columns = (
        Column("variant", lambda row: str(row["variant"])),
        Column("mean rank", lambda row: f"{row['mean_rank']:.2f}", "mean_rank", bigger_is_better=False),
        Column("mean score", lambda row: f"{row['mean_score']:.4f}", "mean_score"),
        Column("MB sent", lambda row: _cost(row, "num_bytes"), "num_bytes", bigger_is_better=False),
        Column("TFLOP", lambda row: _cost(row, "flops"), "flops", bigger_is_better=False),
        Column("simulated s", lambda row: _cost(row, "sim_time_s"), "sim_time_s", bigger_is_better=False),
    )
    return Table("ranks", f"Ranks of {len(rows)} methods", columns, rows, tuple(_notes(ranking, choices, blocks)))


def _cost(row: Row, key: str) -> str:
    return cost_text(row[key] / COSTS[key])


def _notes(ranking: Ranking, choices: Choices, blocks: Blocks) -> list[str]:
    num_blocks, p = len(ranking.scores), ranking.p_value
    what = "one task and seed" if blocks == "seed" else "one task, with the mean over its seeds"
    picked = "the mean of the last 3 evaluations" if choices.pick == "last" else "the highest evaluation"
    notes = [
        f"Mean ranks over {num_blocks} blocks; a block is {what}. Rank 1 is the best. Score: {picked} of a run. Costs: "
        "whole runs, setup included.",
    ]
    if ranking.num_left_out:
        lacking = ", ".join(f"{name} ({count})" for name, count in ranking.missing.items())
        notes.append(f"{ranking.num_left_out} blocks are left out, because variants have no score there: {lacking}.")
    differ = "methods differ" if p < LEVEL else "no difference is shown, so do not read the order as a result"
    friedman = f"p = {p:.3g}: {differ}" if math.isfinite(p) else "all scores are equal"
    notes.append(
        f"Friedman test: {friedman}. Nemenyi test: mean ranks differ if they are more than "
        f"{ranking.critical_difference:.2f} apart (both at {LEVEL:.0%})."
    )
    return notes


def draw(ranking: Ranking) -> Figure:
    """The critical-difference diagram: bars join methods that Nemenyi's test does not tell apart."""
    try:
        import pandas as pd
        from scikit_posthocs import critical_difference_diagram, posthoc_nemenyi_friedman
    except ImportError as error:
        raise UserError(f'{error.name}: is not installed; run pip install "fibec_ray[benchmark]"') from error
    scores = pd.DataFrame(ranking.scores, columns=list(ranking.names))
    mean_ranks = pd.Series(ranking.ranks.mean(0), index=scores.columns)
    p_values = posthoc_nemenyi_friedman(scores).fillna(1.0)
    figure = Figure(figsize=(8.0, 1.4 + 0.13 * len(ranking.names)), layout="constrained")
    axes = figure.subplots()
    critical_difference_diagram(
        mean_ranks,
        p_values,
        ax=axes,
        alpha=LEVEL,
        text_h_margin=0.01 * len(ranking.names),
        label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}",
    )
    axes.set_title(
        f"Mean rank over {len(scores)} blocks; critical difference {ranking.critical_difference:.2f}", fontsize=9
    )
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--only", default="", help="variants to rank beside the reference (default: all)")
    parser.add_argument(
        "--blocks", choices=("seed", "task"), default="seed", help="what a rank is over (default: seed)"
    )
    parser.add_argument("--model", choices=("personal", "global"), help="which score (default: personal if logged)")
    parser.add_argument("--score", choices=("last", "best"), default="last", help="default: last, the mean of three")
    parser.add_argument(
        "--out", type=Path, default=Path("ranks.svg"), help="a file name that ends in .svg, .pdf or .png"
    )
    args = parser.parse_args(arguments)
    only = tuple(name.strip() for name in args.only.split(",") if name.strip())
    choices = Choices(only=only, model=args.model, pick=args.score)
    try:
        ranking = ranking_of(settings_of(args.runs, choices), choices, args.blocks)
        figure, table = draw(ranking), table_of(ranking, choices, args.blocks)
    except UserError as error:
        parser.error(str(error))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    replace_file(args.out.with_suffix(".md"), markdown(table).encode())
    replace_file(args.out.with_suffix(".csv"), as_csv(table).encode())
    print(markdown(table), end="")
    print(f"\n{args.out}")


if __name__ == "__main__":
    main()
