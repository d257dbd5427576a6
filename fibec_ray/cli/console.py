"""What a run prints to the terminal: a progress bar and a summary table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from fibec_ray.cli.terminal import make_console, print_table
from fibec_ray.cli.units import duration, size
from fibec_ray.config.experiment import Experiment
from fibec_ray.errors import RunError, round_name, round_number
from fibec_ray.learning.prepare import Prepared
from fibec_ray.learning.run_totals import Row
from fibec_ray.models.products import OF_BFLOAT16, in_words
from fibec_ray.roundlog.scores import anchors_in, personal_equals_global, score_column
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.simulation import Finished
from fibec_ray.types import Fleet

ANCHORS = {
    "majority": "majority class",
    "own_majority": "device's own majority class",
    "mean": "mean",
    "own_mean": "device's own mean",
    "chance": "chance",
}

MOST_DIFFERENCES = 20
WIDE = 100
"""Characters; a line at least this wide has room for a bar beside the numbers."""


class RunView(Callback):
    """Show a run as one progress bar: first the initialisation phase, then rounds with scores, bytes and time left."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._console = make_console()
        self._progress = Progress(
            *_columns(self._console), console=self._console, disable=not self._console.is_terminal
        )
        self._setup: TaskID | None = None
        self._rounds: TaskID | None = None
        self._last_scores = ""

    def __enter__(self) -> RunView:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_data(self, prepared: Prepared) -> None:
        e, shards = self._experiment, prepared.heterogeneity
        pooled = ", their data pooled" if e.method.pooled else ""
        least, most = (f"{shards[name]:.0f}" for name in ("smallest_shard", "largest_shard"))
        sizes = f"{least} samples" if least == most else f"{least} to {most} samples"
        self._say(
            f"{e.name}: {e.method.name} on {e.task.name}, {e.num_devices} devices of {sizes}, "
            f"{e.cohort_size} a round for {e.rounds} rounds, seed {e.seed}{pooled}"
        )
        if prepared.note:
            self._say(prepared.note)

    def on_message(self, text: str) -> None:
        """Print a message, for example that a run is being resumed."""
        self._say(text)

    def on_start(self, fleet: Fleet) -> None:
        lanes = f", {fleet.lanes} side by side" if fleet.lanes > 1 else ""
        placement = getattr(fleet, "placement", None)
        if placement is not None:
            kind = "per_device" if placement.per_device else "pooled"
            self._say(f"placement {kind}: {placement.num_actors} device actors{lanes} ({placement.reason})")
        if fleet.calibration is not None and fleet.calibration.rates:
            self._say(f"lanes {fleet.lanes} ({fleet.calibration})")
        if fleet.device != "cpu":
            self._say(f"devices compute on {fleet.device}")
        if fleet.backend_choice is not None:
            backend, why = fleet.backend_choice
            self._say(f"backbone {backend} ({why})")
        if fleet.products is not None and fleet.products in OF_BFLOAT16:
            self._say(f"frozen layers: {in_words(fleet.products, 'bfloat16')}")
        self._rounds = self._progress.add_task("round", total=self._experiment.rounds, note="")

    def on_progress(self, stage: str, done: int, total: int) -> None:
        if stage == "setup":
            if self._setup is None:
                self._setup = self._progress.add_task("initialisation", total=total, note="devices")
            self._progress.update(self._setup, completed=done)

    def on_round_end(self, row: Row) -> None:
        score = score_column(self._experiment.task.metric)
        if row[f"personal_{score}"] is not None or row[f"global_{score}"] is not None:
            loss = row["personal_loss"] if row["global_loss"] is None else row["global_loss"]
            self._last_scores = (
                f"global {_number(row[f'global_{score}'])}  personal {_number(row[f'personal_{score}'])}  "
                f"loss {_number(loss)}{_perplexity(row)}"
            )
            if not self._console.is_terminal:
                self._say(f"{round_name(row['round'])}: {self._last_scores}  sent {size(row['bytes_total'])}")
        if self._rounds is not None and row["round"] >= 0:
            loss = _number(row["train_loss"])  # None if nothing was trained
            note = f"{self._last_scores}  train loss {loss}  sent {size(row['bytes_total'])}"
            self._progress.update(self._rounds, completed=row["round"] + 1, note=note)

    def summary(self, run: Finished) -> None:
        """Print the final scores beside their anchors, then bytes, samples and time."""
        last, metric = run.rows[-1], self._experiment.task.metric
        table = Table(title=f"{self._experiment.name}: after {self._experiment.rounds} rounds", title_justify="left")
        score = score_column(metric)
        has_accuracy = any(last[f"{model}_accuracy"] is not None for model in ("global", "personal"))
        columns = {"accuracy": "accuracy"} if has_accuracy else {}
        columns |= {metric: "metric"} if metric != "accuracy" else {}
        best_name = "best" if len(columns) == 1 else f"best {metric}"
        more = {"loss": "loss"} | ({"perplexity": "perplexity"} if self._experiment.task.has_perplexity else {})
        for column in ("", *columns, best_name, *more):
            table.add_column(column, justify="right" if column else "left", no_wrap=bool(column), overflow="fold")
        models = {"global": "test set", "personal": "own test shards"}
        if same := personal_equals_global(run.rows):
            models = {"global": "test set; personal models are the same"}
        for model, note in models.items():
            best = max((r[f"{model}_{score}"] for r in run.rows if r[f"{model}_{score}"] is not None), default=None)
            values, others = ([last[f"{model}_{name}"] for name in names.values()] for names in (columns, more))
            table.add_row(f"{model} model, {note}", *map(_number, [*values, best, *others]))
        if has_accuracy and not same:
            trained = f"  {last['num_devices_trained']} devices that trained"
            table.add_row(trained, _number(last["personal_accuracy_trained"]))
        beside = {column: anchors_in(kind, run.prepared.anchors) for column, kind in columns.items()}
        for name in dict.fromkeys(name for found in beside.values() for name in found):
            values = [_number(found.get(name)) for found in beside.values()]
            table.add_row(f"anchor: {ANCHORS[name]}", *values, style="dim")
        print_table(self._console, table)
        self._say(
            f"sent {size(last['bytes_total'])}, {last['num_samples_total']} training samples visited, simulated "
            f"{duration(last['sim_time_s'])}, real {duration(last['wall_time_s'])}"
        )
        self._console.print(f"run directory: {run.folder}", soft_wrap=True)  # not wrapped, so that it can be copied

    def _say(self, text: str) -> None:
        """Print one line. On a terminal it wraps between words, so that no number is cut."""
        if self._console.is_terminal:
            self._console.print(text, overflow="fold")
        else:
            self._console.print(text, soft_wrap=True)


def _columns(console: Console) -> list[ProgressColumn]:
    """Columns of the progress bar. A narrow terminal shows numbers only."""
    notes = TextColumn("{task.fields[note]}", markup=False, table_column=Column(overflow="fold"))
    stage, count = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.completed}/{task.total}"))
    if console.width < WIDE:
        return [stage, count, notes, TimeRemainingColumn()]
    return [stage, BarColumn(), count, notes, TimeElapsedColumn(), TimeRemainingColumn()]


def print_comparison(what: str, differences: Sequence[str]) -> None:
    """Print what was run again and how it differs from the log. Raises RunError if it differs."""
    if not differences:
        print(f"{what}: all equal, bit by bit")
        return
    print("\n".join([f"{what}: {len(differences)} differences", *differences[:MOST_DIFFERENCES]]))
    raise RunError(f"{len(differences)} values are not what was logged, the first: {differences[0]}")


def rounds_in_words(first: int, last: int) -> str:
    """Name rounds by the numbers in the log: (-1, 0) -> 'rounds 0 to 1'; (3, 3) -> 'round 4'."""
    first, last = round_number(first), round_number(last)
    return f"round {last}" if first == last else f"rounds {first} to {last}"


def _perplexity(row: Row) -> str:
    """Perplexity of the global model, or of the personal models if it has none; '' if answers are not texts."""
    found = row["personal_perplexity"] if row["global_perplexity"] is None else row["global_perplexity"]
    return "" if found is None else f"  perplexity {found:.4g}"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
