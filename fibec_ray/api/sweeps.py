"""`fibec_ray.sweep`: runs several variants of an experiment over several seeds, and compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import polars as pl

from fibec_ray.analysis.compare import Choices, compare_collection, written
from fibec_ray.analysis.formats import Table
from fibec_ray.analysis.numbers import Pick
from fibec_ray.analysis.variants import Collection, collect
from fibec_ray.api.progress import SweepBar, is_interactive
from fibec_ray.api.results import Library, Model, Run, as_frame, draw_one, html_table
from fibec_ray.api.session import Callbacks, prepared, several, watched
from fibec_ray.api.settings import Source
from fibec_ray.api.sweep_plan import planned_sweep
from fibec_ray.errors import ConfigError, did_you_mean
from fibec_ray.files.storage import is_url
from fibec_ray.roundlog.schema import TABLES
from fibec_ray.runs.callbacks import Callback
from fibec_ray.sweeps.plan import SweepRun
from fibec_ray.sweeps.run import refuse_failures, run_here, run_sweep

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Style = Literal["markdown", "csv", "latex"]


class Comparison:
    """The tables of a paper: final scores with paired differences, costs to reach a target, spread, total costs."""

    def __init__(self, tables: Sequence[Table]):
        """tables: as `fibec-ray compare` makes them."""
        self._tables = {table.stem: table for table in tables}

    @property
    def names(self) -> list[str]:
        """Names of the tables, in the order in which they are shown."""
        return list(self._tables)

    @overload
    def table(self, name: str = ..., to: Literal["polars"] = "polars") -> pl.DataFrame: ...
    @overload
    def table(self, name: str = ..., *, to: Literal["pandas"]) -> pd.DataFrame: ...
    def table(self, name: str = "scores", to: Library = "polars") -> pl.DataFrame | pd.DataFrame:
        """One of the tables as a frame, with all digits and plain units. Raises ConfigError for another name."""
        if name not in self._tables:
            raise ConfigError(f"{name}: no such table; {did_you_mean(name, self._tables)}")
        return as_frame(pl.DataFrame(list(self._tables[name].rows), infer_schema_length=None), to)

    def text(self, style: Style = "markdown") -> str:
        """All tables as Markdown, CSV or LaTeX."""
        return written(list(self._tables.values()), style)

    def __repr__(self) -> str:
        return self.text()

    def _repr_markdown_(self) -> str:
        """The tables, as notebooks show them."""
        return self.text()


class Sweep:
    """Runs side by side: variants of an experiment, each over some seeds. Runs that have not finished are left out.

    Get one from `fibec_ray.sweep(...)` or `fibec_ray.open_sweep(path)`.
    """

    def __init__(self, paths: Sequence[str | Path]):
        """Raises RunDirError if there is no sweep and no run, or none has finished."""
        self.folders = list(paths)
        """The sweep's folder, or those of the runs."""
        self._runs  # noqa: B018  a folder without runs is refused here

    @cached_property
    def _runs(self) -> Collection:
        return collect(self.folders)

    @property
    def runs(self) -> dict[str, dict[int, Run]]:
        """The finished runs by variant and seed."""
        return {
            variant.name: {seed: Run(log.place.shown) for seed, log in variant.runs.items()}
            for variant in self._runs.variants
        }

    @overload
    def table(self, name: str, to: Literal["polars"] = "polars") -> pl.DataFrame: ...
    @overload
    def table(self, name: str, to: Literal["pandas"]) -> pd.DataFrame: ...
    def table(self, name: str, to: Library = "polars") -> pl.DataFrame | pd.DataFrame:
        """A table of all runs' round logs in one, with two more columns: `variant` and `seed`. See `Run.table`."""
        if name not in TABLES:
            raise ConfigError(f"{name}: the round log has no such table; {did_you_mean(name, TABLES)}")
        return as_frame(self._runs.table(name).collect(), to)

    @overload
    def rounds(self, to: Literal["polars"] = "polars") -> pl.DataFrame: ...
    @overload
    def rounds(self, to: Literal["pandas"]) -> pd.DataFrame: ...
    def rounds(self, to: Library = "polars") -> pl.DataFrame | pd.DataFrame:
        """One row per variant, seed and round. See `Run.rounds`."""
        return self.table("rounds", to)

    def compare(
        self,
        reference: str | None = None,
        target: float | Sequence[float] = (),
        model: Model | None = None,
        anyway: bool = False,
        score: Pick = "last",
    ) -> Comparison:
        """The tables of a paper, with differences paired by seed.

        reference: name of the variant that others are compared with; by default the first.
        target: scores to reach; by default 95 % of the best score of the reference.
        model: "personal" or "global"; by default personal models where all methods have them.
        anyway: compare runs that differ in data, partition or model, too. Raises UserError for such runs otherwise.
        score: "last" compares the mean of the last three evaluations, "best" the highest one. Raises ConfigError for
            any other value.
        """
        if score not in ("last", "best"):
            raise ConfigError(f"score: expected 'last' or 'best', found {score!r}")
        targets = tuple(target) if isinstance(target, Sequence) else (target,)
        choices = Choices(reference=reference, targets=targets, model=model, anyway=anyway, pick=score)
        return Comparison(compare_collection(self._runs, choices))

    def figures(self) -> list[str]:
        """Names of the figures that there are numbers for; `figure(name)` draws one."""
        return list(self._drawings)

    def figure(self, name: str | None = None) -> Figure:
        """Draw means over seeds, one line per variant, with the range from the lowest to the highest seed.

        name: one of `figures()`; by default the score by round. Raises ConfigError for another name.
        """
        return draw_one(self._drawings, name, str(self.folders[0]))

    @property
    def _drawings(self) -> dict[str, Any]:
        from fibec_ray.analysis.cards import figures_of
        from fibec_ray.analysis.overlay import overlay_cards
        from fibec_ray.analysis.tables import RunTables

        variants = [variant for variant in self._runs.variants if variant.runs]
        tables = {variant.name: [RunTables.read(log) for log in variant.runs.values()] for variant in variants}
        metric = next((log.fact("metric") for variant in variants for log in variant.runs.values()), None)
        return {figure.stem: figure for figure in figures_of(overlay_cards(tables, metric))}

    def report(self, path: str | Path | None = None) -> Path:
        """Write one HTML page that compares all runs, and return its path. By default DIR/report.html."""
        from fibec_ray.analysis.report import write_report

        return write_report(self.folders, None if path is None else Path(path))

    def __repr__(self) -> str:
        return f"Sweep({', '.join(map(repr, map(str, self.folders)))}: {self._counts()})"

    def _repr_html_(self) -> str:
        """A small table in notebooks: the seeds of each variant."""
        seeds = {variant.name: f"seeds {', '.join(map(str, variant.runs))}" for variant in self._runs.variants}
        return html_table(self._runs.name, seeds)

    def _counts(self) -> str:
        variants = self._runs.variants
        return f"{len(variants)} variants, {sum(len(variant.runs) for variant in variants)} finished runs"


def sweep(
    experiment: Source | None = None,
    *,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | Sequence[int] | None = None,
    out: str | Path,
    jobs: int = 1,
    callbacks: Callbacks = (),
    progress: bool | None = None,
    **changes: Any,
) -> Sweep:
    """Run every combination of some settings over several seeds, and return the results.

        fibec_ray.sweep("trec", vary={"method": ["fedavg", "fibecfed"]}, seeds=3, out="runs/compare")

    experiment: as for `fibec_ray.run`; or the name or path of a sweep file, which has its own variants and seeds.
    vary: values to try, by key: {"method": [...], "local.learning_rate": [...]}; the first is the reference.
    seeds: how many, counted from 0, or a list of them; by default 3.
    out: folder of the sweep. Finished runs in it are kept and interrupted ones continued, so the same call goes on
        with a sweep that was stopped.
    jobs: runs at a time. With 1 they run in this process, else each in a process of its own.
    changes: settings to change in all runs, as for `fibec_ray.run`.

    Raises UserError for input that you can fix, and RunError after the last run if any failed; the others are kept.
    """
    with prepared():
        if jobs != 1 and several(callbacks):
            raise ConfigError(f"callbacks: are called in this process, and jobs={jobs} starts others; set jobs=1")
        if is_url(out):
            raise ConfigError("out: a sweep needs a folder on this machine, and this is a URL; give a path")
        plan = planned_sweep(experiment, vary, seeds, changes)
        where = Path(expanduser(out))
        shown = is_interactive() if progress is None else progress
        with SweepBar(len(plan.runs), shown) as bar:

            def watch(run: SweepRun, folder: Path) -> AbstractContextManager[Callback]:
                return watched(run.experiment, [*several(callbacks), bar], False, str(folder))

            here = jobs == 1
            failures = run_here(plan, where, bar.say, watch) if here else run_sweep(plan, where, jobs, bar.say)
        refuse_failures(failures, len(plan.runs))
    return Sweep([where])


def open_sweep(path: str | Path | Sequence[str | Path]) -> Sweep:
    """Open a sweep's folder, or several runs to compare. Raises RunDirError if no run in it has finished."""
    return Sweep([path] if isinstance(path, str | Path) else list(path))
