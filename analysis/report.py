"""Turns a run directory into RUN/report/*.png and one self-contained page, RUN/report.html; called by `fibec-ray`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from analysis.curves import Curve, curves_of
from analysis.figures import png
from analysis.files import FINISHED, read_mapping, replace_file
from analysis.scores import RECENT, scores_of
from analysis.tables import RunTables, latest_layers
from analysis.units import BYTES, SECONDS, readable


@dataclass(frozen=True)
class Run:
    """What a run directory says about a run. The log must be there; config and summary may be missing (empty)."""

    tables: RunTables
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    metadata: Mapping[str, str]
    """of the round log"""

    @staticmethod
    def read(run_dir: Path) -> Run:
        tables = RunTables.read(run_dir)
        metadata = {key.decode(): value.decode() for key, value in (tables.rounds.schema.metadata or {}).items()}
        return Run(tables, read_mapping(run_dir / "config.yaml"), read_mapping(run_dir / "summary.json"), metadata)

    def fact(self, key: str) -> Any:
        """A plain value from the summary, or else the config, or else the log's metadata; None where none has it."""
        sources = (self.summary, self.config, self.metadata)
        return next((source[key] for source in sources if isinstance(source.get(key), str | int | float)), None)

    def anchors(self) -> dict[str, float]:
        found = self.summary.get("anchors") or {}
        return {key: float(value) for key, value in found.items() if value is not None}


def write_report(run_dir: Path) -> Path:
    """Draws every curve that the log has and writes the page, also while the run goes on. Returns the page's path."""
    run = Run.read(run_dir)
    curves = curves_of(run.tables, run.anchors(), run.fact("metric"))
    images = {curve.stem: png(curve) for curve in curves}
    for stem, image in images.items():
        replace_file(run_dir / "report" / f"{stem}.png", image)
    page = run_dir / "report.html"
    replace_file(page, _render(run, run_dir.resolve().name, curves, images).encode())
    return page


def _render(run: Run, folder: str, curves: list[Curve], images: Mapping[str, bytes]) -> str:
    environment = Environment(
        loader=PackageLoader("analysis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.4g}"
    return environment.get_template("report.html.j2").render(
        name=run.fact("name") or run.fact("run_id") or folder,
        notice=_notice(run),
        facts=_facts(run),
        scores=scores_of(run.tables, run.anchors(), run.fact("metric")),
        recent=RECENT,
        costs=_costs(run.tables),
        figures=[_figure(curve, images[curve.stem]) for curve in curves],
        layers=latest_layers(run.tables),
        config=yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else "",
        footer=_footer(run),
    )


def _notice(run: Run) -> str:
    """One line about a run that has not come to its end; '' for one that has."""
    status, planned, done = run.summary.get("status"), run.fact("rounds"), run.tables.rounds_done()
    if status == FINISHED or (status is None and planned == done):
        return ""
    progress = f"{done} of {planned} rounds completed" if planned else f"{done} rounds completed"
    state = "is still going or was stopped" if status in (None, "running") else f"has the status '{status}'"
    return f"This run {state}: {progress}."


def _facts(run: Run) -> list[tuple[str, str]]:
    done, planned = run.tables.rounds_done(), run.fact("rounds")
    devices = run.summary.get("num_devices") or run.fact("num_devices") or max(run.tables.column("num_devices"))
    found = [
        ("method", run.fact("method")),
        ("task", run.fact("task")),
        ("task metric", run.fact("metric")),
        ("seed", run.fact("seed")),
        ("rounds", f"{done} of {planned}" if planned and planned != done else done),
        ("devices", devices),
        ("devices per round", run.fact("cohort_size")),
    ]
    return [(label, str(value)) for label, value in found if value is not None]


def _costs(tables: RunTables) -> list[tuple[str, str, str]]:
    """(label, readable value, exact value)"""
    up, down, total = sum(tables.column("bytes_up")), sum(tables.column("bytes_down")), tables.column("bytes_total")[-1]
    simulated, wall = tables.column("sim_time_s")[-1], tables.column("wall_time_s")[-1]
    samples, steps = tables.column("num_samples_total")[-1], sum(tables.column("num_steps"))
    return [
        ("sent both ways", readable(total, BYTES), f"{total:,} B"),
        ("up", readable(up, BYTES), f"{up:,} B"),
        ("down", readable(down, BYTES), f"{down:,} B"),
        ("simulated time", readable(simulated, SECONDS), f"{simulated:,.1f} s"),
        ("wall time", readable(wall, SECONDS), f"{wall:,.1f} s"),
        ("training samples", f"{samples:,}", ""),
        ("optimiser steps", f"{steps:,}", ""),
        ("updates lost", f"{sum(tables.column('num_lost')):,}", ""),
    ]


def _figure(curve: Curve, image: bytes) -> dict[str, str]:
    return {
        "title": curve.title,
        "caption": curve.caption,
        "x_label": curve.x_label,
        "y_label": curve.y_label,
        "base64": base64.b64encode(image).decode(),
    }


def _footer(run: Run) -> str:
    keys = (("run", "run_id"), ("commit", "git_commit"), ("adapter", "adapter_digest"))
    found = [f"{label} {run.fact(key)}" for label, key in keys if run.fact(key) is not None]
    return " · ".join([*found, "columns of the log: docs/round-log.md"])
