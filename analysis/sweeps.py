"""Compares the finished runs of a sweep: one line for each variant, means over seeds and the paired difference to the
reference; sweep_table.py writes them down. Called by `fibec-ray`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student_t

from analysis.files import FINISHED, read_mapping
from analysis.scores import RECENT
from analysis.tables import RunTables
from fibec_ray.errors import RunDirError
from fibec_ray.roundlog.schema import score_column

CONFIDENCE = 0.95


@dataclass(frozen=True)
class RunNumbers:
    """One finished run. Scores are None where the log has none."""

    personal: float | None
    """score of the personal models: accuracy, or what the task has instead"""
    shared: float | None
    """score of the global model"""
    num_bytes: float
    num_samples: float
    flops: float
    """of all devices, the initialisation phase included"""
    sim_time_s: float
    wall_time_s: float
    score: str
    """accuracy, or the task's own metric"""
    anchors: Mapping[str, float]


@dataclass(frozen=True)
class Paired:
    """Differences of personal scores, variant minus reference, over the seeds that both have finished."""

    mean: float
    half_width: float | None
    """of the CONFIDENCE interval of the mean by Student's t with num_pairs - 1 degrees; None for a single pair"""
    num_pairs: int

    @staticmethod
    def of(differences: list[float]) -> Paired | None:
        count = len(differences)
        if count == 0:
            return None
        half_width = None
        if count > 1:
            half_width = float(student_t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stdev(differences) / math.sqrt(count)
        return Paired(fmean(differences), half_width, count)

    @property
    def matters(self) -> bool | None:
        """Whether the interval excludes 0; None where there is no interval."""
        return None if self.half_width is None else abs(self.mean) > self.half_width


@dataclass(frozen=True)
class Line:
    """One variant; means over its finished seeds, None where it has none."""

    group: str
    variant: str
    num_seeds: int
    personal: float | None
    shared: float | None
    paired: Paired | None
    """None for the reference itself, and without a seed that both have finished"""
    num_bytes: float | None
    num_samples: float | None
    flops: float | None
    sim_time_s: float | None
    wall_time_s: float | None


@dataclass(frozen=True)
class Comparison:
    name: str
    reference: str
    recent: int
    """evaluations at the end of a run whose mean is its score"""
    num_seeds: int
    """of the sweep; a line has fewer while the sweep goes on"""
    score: str
    """what the runs are judged by: accuracy, or r2"""
    anchors: Mapping[str, float]
    """of the reference's runs, means over seeds"""
    lines: tuple[Line, ...]


def compare(sweep_dir: Path, recent: int = RECENT) -> Comparison:
    """Reads DIR/sweep.yaml and the round logs of its finished runs; others are left out. Raises RunDirError."""
    record = _record(sweep_dir)
    runs = {
        variant["name"]: _finished_runs(sweep_dir / variant["folder"], record["seeds"], recent)
        for variant in record["variants"]
    }
    reference = record["reference"]
    lines = [_line(variant, runs[variant["name"]], runs[reference], reference) for variant in record["variants"]]
    anchors = [run.anchors for run in runs[reference].values()]
    names = sorted(set[str]().union(*anchors))
    return Comparison(
        name=str(record["name"]),
        reference=reference,
        recent=recent,
        num_seeds=len(record["seeds"]),
        score=next((run.score for run in runs[reference].values()), "accuracy"),
        anchors={name: fmean(found[name] for found in anchors if name in found) for name in names},
        lines=tuple(lines),
    )


def _record(sweep_dir: Path) -> dict[str, Any]:
    """What `fibec-ray sweep` wrote before it started."""
    path = sweep_dir / "sweep.yaml"
    record = read_mapping(path)
    if not record:
        raise RunDirError(f"{sweep_dir}: no sweep here; is it the --out folder of `fibec-ray sweep`?")
    keys = {"name", "reference", "seeds", "variants"}
    if not keys <= record.keys() or not isinstance(record["variants"], list):
        raise RunDirError(f"{path}: is not the record of a sweep; expected the keys {', '.join(sorted(keys))}")
    return record


def _finished_runs(folder: Path, seeds: list[int], recent: int) -> dict[int, RunNumbers]:
    """{seed: its run}"""
    found = {}
    for seed in seeds:
        summary = read_mapping(folder / f"seed-{seed}" / "summary.json")
        if summary.get("status") == FINISHED:
            found[seed] = _numbers(RunTables.read(folder / f"seed-{seed}"), summary, recent)
    return found


def _numbers(tables: RunTables, summary: Mapping[str, Any], recent: int) -> RunNumbers:
    def last(column: str) -> float:
        return float(tables.column(column)[-1])

    metric = summary.get("metric")
    column = score_column(metric)

    def score(model: str) -> float | None:
        known = [value for _, value in tables.points("round", f"{model}_{column}")]
        return fmean(known[-recent:]) if known else None

    anchors = summary.get("anchors") or {}
    return RunNumbers(
        personal=score("personal"),
        shared=score("global"),
        score="accuracy" if column == "accuracy" else str(metric),
        num_bytes=last("bytes_total"),
        num_samples=last("num_samples_total"),
        flops=math.fsum(tables.column("flops")),
        sim_time_s=last("sim_time_s"),
        wall_time_s=last("wall_time_s"),
        anchors={name: float(value) for name, value in anchors.items() if value is not None},
    )


def _line(
    variant: Mapping[str, Any], runs: Mapping[int, RunNumbers], others: Mapping[int, RunNumbers], reference: str
) -> Line:
    def mean(value: Callable[[RunNumbers], float | None]) -> float | None:
        known = [number for run in runs.values() if (number := value(run)) is not None]
        return fmean(known) if known else None

    pairs = [(run.personal, others[seed].personal) for seed, run in runs.items() if seed in others]
    differences = [own - other for own, other in pairs if own is not None and other is not None]
    return Line(
        group=variant["group"],
        variant=variant["name"],
        num_seeds=len(runs),
        personal=mean(lambda run: run.personal),
        shared=mean(lambda run: run.shared),
        paired=None if variant["name"] == reference else Paired.of(differences),
        num_bytes=mean(lambda run: run.num_bytes),
        num_samples=mean(lambda run: run.num_samples),
        flops=mean(lambda run: run.flops),
        sim_time_s=mean(lambda run: run.sim_time_s),
        wall_time_s=mean(lambda run: run.wall_time_s),
    )
