"""A run's results in Python: tables, best score, figures, report and the trained model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from html import escape
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import polars as pl

from fibec_ray.analysis.log import RunLog
from fibec_ray.analysis.log import open_run as open_log
from fibec_ray.errors import ConfigError, RunDirError, did_you_mean
from fibec_ray.files.storage import is_url
from fibec_ray.roundlog.schema import TABLES
from fibec_ray.roundlog.scores import score_column

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from fibec_ray.analysis.figure import Figure as Drawing
    from fibec_ray.export.predict import TrainedModel
    from fibec_ray.runs.callbacks import Callback

Library = Literal["polars", "pandas"]
"""The library whose frame a table comes as."""
Model = Literal["personal", "global"]
"""The server's model on the test set, or each device's own model on its test shard."""


@dataclass(frozen=True)
class Best:
    """The highest test score of a run."""

    value: float
    metric: str
    """"accuracy", or the task's own metric"""
    model: Model
    after_rounds: int
    """rounds completed when it was measured"""

    def __str__(self) -> str:
        return f"{self.model} {self.metric} {self.value:.3f} after {self.after_rounds} rounds"


class Run:
    """A run directory: what was logged in it and what it left behind. Also opens a run that is still going on.

    Get one from `fibec_ray.run(...)` or `fibec_ray.open_run(path)`.
    """

    def __init__(self, path: str | Path):
        """Raises RunDirError if the folder holds no round log, or one of a version that this program cannot read."""
        self.folder = path if is_url(path) else Path(expanduser(path))
        """The run directory, or its URL."""
        self._log  # noqa: B018  a folder without a run is refused here

    @cached_property
    def _log(self) -> RunLog:
        return open_log(self.folder)

    # --- tables

    @overload
    def table(self, name: str, to: Literal["polars"] = "polars") -> pl.DataFrame: ...
    @overload
    def table(self, name: str, to: Literal["pandas"]) -> pd.DataFrame: ...
    def table(self, name: str, to: Library = "polars") -> pl.DataFrame | pd.DataFrame:
        """A table of the round log: rounds, devices, layers, batches or evaluations.

        to: "polars" or "pandas". docs/round-log.md lists every column with its unit. Raises ConfigError for a table
        or library that does not exist, RunDirError for a file that cannot be read.
        """
        if name not in TABLES:
            raise ConfigError(f"{name}: the round log has no such table; {did_you_mean(name, TABLES)}")
        return as_frame(self._log.frame(name), to)

    @overload
    def rounds(self, to: Literal["polars"] = "polars") -> pl.DataFrame: ...
    @overload
    def rounds(self, to: Literal["pandas"]) -> pd.DataFrame: ...
    def rounds(self, to: Library = "polars") -> pl.DataFrame | pd.DataFrame:
        """One row per round: scores, losses, bytes sent, simulated and real time."""
        return self.table("rounds", to)

    @overload
    def devices(self, to: Literal["polars"] = "polars") -> pl.DataFrame: ...
    @overload
    def devices(self, to: Literal["pandas"]) -> pd.DataFrame: ...
    def devices(self, to: Library = "polars") -> pl.DataFrame | pd.DataFrame:
        """One row per device and round in which it trained: samples, steps, loss, time, bytes."""
        return self.table("devices", to)

    @overload
    def layers(self, to: Literal["polars"] = "polars") -> pl.DataFrame: ...
    @overload
    def layers(self, to: Literal["pandas"]) -> pd.DataFrame: ...
    def layers(self, to: Library = "polars") -> pl.DataFrame | pd.DataFrame:
        """One row per layer and round: sensitivity, Fisher mass, shared or not. Empty where no method scores layers."""
        return self.table("layers", to)

    @overload
    def evaluations(self, to: Literal["polars"] = "polars") -> pl.DataFrame: ...
    @overload
    def evaluations(self, to: Literal["pandas"]) -> pd.DataFrame: ...
    def evaluations(self, to: Library = "polars") -> pl.DataFrame | pd.DataFrame:
        """One row per device in each evaluated round: the score of its own model on its own test shard."""
        return self.table("evaluations", to)

    # --- facts and scores

    @property
    def summary(self) -> dict[str, Any]:
        """RUN/summary.json: method, task, seed, status, anchors and more."""
        return dict(self._log.summary)

    @property
    def config(self) -> dict[str, Any]:
        """Every setting of the experiment with defaults filled in."""
        return dict(self._log.config)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self._log.fact("name") or self._log.place.name)

    @property
    def status(self) -> str:
        """ "running", "finished" or "failed"."""
        return str(self.summary.get("status", "unknown"))

    @property
    def anchors(self) -> dict[str, float]:
        """Scores that need no training: always the majority class, or each device's own majority class."""
        return self._log.anchors()

    def best(self, model: Model | None = None) -> Best:
        """The highest test score.

        model: "personal" or "global"; by default personal models where the method has them. Raises ConfigError for
        another word, RunDirError if the run has no evaluation of this model yet.
        """
        if model not in (None, "personal", "global"):
            raise ConfigError(f"model: expected 'personal' or 'global', found {model!r}")
        wanted: Sequence[Model] = (model,) if model else ("personal", "global")
        metric = str(self._log.fact("metric") or "accuracy")
        score, rounds = score_column(metric), self.rounds()
        for one in wanted:
            column = pl.col(f"{one}_{score}")
            found = rounds.filter(column.is_not_null() & column.is_not_nan()).sort(column, descending=True)
            if len(found):  # sort is stable: the first of equal scores is the earliest
                row = found.row(0, named=True)
                name = "accuracy" if score == "accuracy" else metric
                return Best(float(row[f"{one}_{score}"]), name, one, int(row["round"]) + 1)
        raise RunDirError(
            f"{self.folder}: no {f'{model} ' if model else ''}score in the round log yet; wait for the first evaluated "
            "round (evaluation.every), or leave `model` out"
        )

    # --- figures, report, model

    def figures(self) -> list[str]:
        """Names of the figures that this run has numbers for; `figure(name)` draws one."""
        return list(self._drawings)

    def figure(self, name: str | None = None) -> Figure:
        """Draw a figure with matplotlib.

        name: one of `figures()`; by default the score by round. Raises ConfigError for another name, RunDirError if
        nothing has been evaluated yet.
        """
        return draw_one(self._drawings, name, str(self.folder))

    @property
    def _drawings(self) -> dict[str, Drawing]:
        from fibec_ray.analysis.cards import cards_of, figures_of
        from fibec_ray.analysis.tables import RunTables

        metric = self._log.fact("metric")
        cards = cards_of(RunTables.read(self._log), self.anchors, None if metric is None else str(metric))
        return {figure.stem: figure for figure in figures_of(cards)}

    def report(self, path: str | Path | None = None) -> Path:
        """Write one HTML page with all figures and tables of the run, and return its path.

        path: by default report.html in the run directory.
        """
        from fibec_ray.analysis.report import write_report

        return write_report([self.folder], None if path is None else Path(path))

    def load(self, device: int | None = None, *, base: str | None = None, on: str | None = None) -> TrainedModel:
        """Load the trained model, ready to predict; see `fibec_ray.load`.

        device: load this device's personal model; by default the global one.
        """
        from fibec_ray.api.session import prepared

        with prepared():
            from fibec_ray.export.load import load

            return load(self.folder, device, base=base, on=on)

    def resume(
        self, callbacks: Callback | Sequence[Callback] = (), progress: bool | None = None, **changes: Any
    ) -> Run:
        """Continue a run that was interrupted or failed, from its newest checkpoint. A finished run stays as it is.

        changes: settings of `fleet` and `checkpoint`. Raises RunDirError if the run cannot be continued.
        """
        from fibec_ray.api.session import continue_run

        continue_run(self.folder, callbacks, progress, changes)
        return Run(self.folder)

    # --- how it is shown

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {', '.join(f'{key} {value}' for key, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        """A small table in notebooks."""
        return html_table(self.name, self._facts() | {"path": str(self.folder)})

    def _facts(self) -> dict[str, str]:
        """What identifies the run, in a few words each."""
        rounds = self.rounds().filter(pl.col("round") >= 0)
        total = self.summary.get("rounds", "?")
        found = {"method": self._log.fact("method"), "task": self._log.fact("task"), "seed": self._log.fact("seed")}
        facts = {key: str(value) for key, value in found.items() if value is not None}
        facts |= {"status": self.status, "rounds": f"{len(rounds)} of {total}"}
        with suppress(RunDirError):  # nothing has been evaluated yet
            facts["best"] = str(self.best())
        return facts


def open_run(path: str | Path) -> Run:
    """Open a run directory, finished or not, or the URL of one. Raises RunDirError if there is no round log in it."""
    return Run(path)


def as_frame(frame: pl.DataFrame, to: Library) -> pl.DataFrame | pd.DataFrame:
    """The frame in the library that the caller wants. Raises ConfigError for another word."""
    if to == "polars":
        return frame
    if to == "pandas":
        return frame.to_pandas()
    raise ConfigError(f"to: expected 'polars' or 'pandas', found {to!r}")


def draw_one(drawings: dict[str, Drawing], name: str | None, where: str) -> Figure:
    """Draw the named figure, or the first. Raises ConfigError for a name that is not there, RunDirError for none."""
    from fibec_ray.analysis.figures import figure_of

    if not drawings:
        raise RunDirError(f"{where}: nothing to draw yet; wait for the first evaluated round (evaluation.every)")
    if name is not None and name not in drawings:
        raise ConfigError(f"{name}: no such figure; {did_you_mean(name, drawings)}")
    return figure_of(drawings[name] if name else next(iter(drawings.values())))


def html_table(title: str, facts: dict[str, str]) -> str:
    """A title and one row per fact."""
    rows = "".join(
        f"<tr><th align='left'>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items()
    )
    return f"<b>{escape(title)}</b><table>{rows}</table>"
