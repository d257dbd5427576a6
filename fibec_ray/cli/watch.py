"""`fibec-ray watch RUN`: a live view of a run directory while it is written; in a pipe, one line per round."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fibec_ray.cli.streams import harmless
from fibec_ray.cli.terminal import least_width, make_console
from fibec_ray.cli.units import duration, size
from fibec_ray.errors import RunDirError, round_number
from fibec_ray.roundlog.parts import parts
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.roundlog.scores import score_column

EVERY_S = 1.0
NEWEST = 12
"""Number of rounds that the view shows."""
COLUMNS = ("round", "global", "personal", "loss", "train loss", "sent", "lost", "simulated", "real")
SPARED = ("simulated", "lost", "real", "train loss", "sent", "loss")
"""Columns left out on a narrow terminal, in this order."""


def watch(run_dir: Path, every_s: float = EVERY_S) -> None:
    """Follow a run until it ends. Raises RunDirError for a folder that is not a run directory."""
    console = make_console()
    if not console.is_terminal:
        for line in lines(run_dir, every_s):
            print(line, flush=True)
        return
    with Live(console=console, auto_refresh=False) as live:
        for summary, rows in looks(run_dir, every_s):
            live.update(view(summary, rows, console.width), refresh=True)


def lines(run_dir: Path, every_s: float) -> Iterator[str]:
    """'round 3: global 0.412  ...' once for each round, and how the run ended. Round 0 is before training."""
    shown, status = 0, ""
    for summary, rows in looks(run_dir, every_s):
        score = score_column(summary["metric"])
        for row in rows[shown:]:
            cells = zip(COLUMNS, _cells(row, score), strict=True)
            (_, round_), *rest = cells
            yield f"round {round_}: " + "  ".join(f"{name} {value}" for name, value in rest)
        shown, status = len(rows), summary["status"]
    yield f"{run_dir}: {status}"


def looks(run_dir: Path, every_s: float) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield (summary, rows of `rounds`) every few seconds; the last ones after the run has ended."""
    while True:
        summary = _summary(run_dir)  # read first, so that the rows are not older
        yield summary, _rows(run_dir)
        if summary["status"] != "running":
            return
        time.sleep(every_s)


def view(summary: dict[str, Any], rows: list[dict[str, Any]], width: int) -> Group:
    """Show a title, a bar with the time left, and the newest rounds in as many columns as fit."""
    done, total = len([row for row in rows if row["round"] >= 0]), summary["rounds"]
    shown = [dict(zip(COLUMNS, _cells(row, score_column(summary["metric"])), strict=True)) for row in rows[-NEWEST:]]
    columns = list(COLUMNS)
    for spared in SPARED:
        if least_width(_table(columns, shown)) > width:
            columns.remove(spared)
    name, method, task, seed = (summary.get(key) for key in ("name", "method", "task", "seed"))
    title = f"{name}: {method} on {task}, seed {seed}, {summary['status']}"
    left = _left(rows, total) if summary["status"] == "running" else ""
    bar, count = ProgressBar(total, done, width=min(60, width)), Text(f"{done}/{total} rounds{left}")
    return Group(Text(harmless(title), "bold"), bar, count, _table(columns, shown))


def _table(columns: list[str], rows: list[dict[str, str]]) -> Table:
    table = Table(box=None)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    return table


def _left(rows: list[dict[str, Any]], total: int) -> str:
    """Estimate the time left from the pace of the rounds shown."""
    newest = [row for row in rows if row["round"] >= 0][-NEWEST:]
    if len(newest) < 2:
        return ""
    pace_s = (newest[-1]["wall_time_s"] - newest[0]["wall_time_s"]) / (len(newest) - 1)
    return f", about {duration(pace_s * (total - 1 - newest[-1]['round']))} left"


def _cells(row: dict[str, Any], score: str) -> list[str]:
    loss = row["personal_loss"] if row["global_loss"] is None else row["global_loss"]
    numbers = (row[f"global_{score}"], row[f"personal_{score}"], loss, row["train_loss"])
    return [
        str(round_number(row["round"])),
        *("-" if number is None else f"{number:.3f}" for number in numbers),
        size(row["bytes_total"]),
        str(row["num_lost"]),
        duration(row["sim_time_s"]),
        duration(row["wall_time_s"]),
    ]


def _summary(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "summary.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["status"], found["metric"]
        found["rounds"] = int(found["rounds"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise RunDirError(
            f"{run_dir}: not a run directory, or its run has not started; give the directory of a started run"
        ) from error
    return found


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of the log; empty until the initialisation phase has ended."""
    if not parts(run_dir / "rounds"):
        return []
    rows: list[dict[str, Any]] = read_rounds(run_dir).to_pylist()
    return rows
