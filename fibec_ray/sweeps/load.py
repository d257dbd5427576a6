"""A sweep file and `key=value` overrides -> one checked Sweep; every mistake becomes one ConfigError.

    config: trec                                # a packaged config, or a path from this file
    overrides: [rounds=15]                      # for all runs (optional)
    seeds: [0, 1, 2]
    reference: fibecfed                         # the variant that the others are compared with
    table: paper                                # also end with `fibec-ray paper-table` (optional)
    variants:                                   # name: what it changes
      fibecfed: [method=fibecfed]
      fedavg: [method=fedavg]
      Pacing:                                   # title: variants; a group, a sub-heading of the table
        "pacing: sqrt": [method=fibecfed, method.curriculum.pacing=sqrt]

`tasks` runs all variants on several tasks, each with settings of its own. See read.py for `extends`.

    overrides: ["data.path=sets/{set}"]         # {task} stands for the name below, {set} for the data set
    tasks:                                      # name: what it changes
      mr: [rounds=20]                           # the data set `mr`
      trec-skewed: [task=trec, partition.alpha=0.1]

`tune` chooses settings by runs of their own first; see tuning.py. `tuned=FILE` on the command line takes them from the
tuned.yaml of another sweep instead.

Or the file is an experiment, and overrides with several values make the grid: `method=fibecfed,fedavg seed=0,1,2`.

Overrides apply in the order sweep, task, command line, variant, and among them from the shallowest key to the deepest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictInt, StrictStr, ValidationError

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.explain import explain
from fibec_ray.config.reading import parse_override
from fibec_ray.errors import ConfigError, did_you_mean
from fibec_ray.sweeps.grid import parse_grid, values
from fibec_ray.sweeps.plan import SweepPlan, SweepRun, TableName, Variant
from fibec_ray.sweeps.read import picked_tasks, read_sweep
from fibec_ray.sweeps.tuned_file import tuned_before
from fibec_ray.sweeps.tuning import FOLDER, Source, TuneFile, load_run, settings_tried, tune_file, tuning_of

MAX_NAME = 100
"""characters in a variant's name, which names a folder too"""
PICK = "task="
"""Start of an override that picks some tasks of a sweep: task=trec,mr."""
PICK_VARIANTS = "variants="
"""Start of an override that picks some variants: variants=fedavg,fibecfed."""
TUNED = "tuned="
"""Start of an override that names a record of tuned values to take: tuned=runs/accuracy/{task}/tuned.yaml."""


class _SweepFile(BaseModel, extra="forbid"):
    """The keys of a sweep file; _variants checks `variants`, and tuning.py `tune`."""

    config: StrictStr = Field(min_length=1)
    overrides: list[StrictStr] = []
    seeds: list[Annotated[StrictInt, Field(ge=0)]] = Field(min_length=1)
    reference: StrictStr
    tasks: dict[StrictStr, list[StrictStr]] = {}
    table: TableName = "sweep"
    tune: Any = None
    variants: dict[Any, Any] = Field(min_length=1)


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepPlan:
    """Load a sweep from its file, or from an experiment and overrides with several values.

    Raises ConfigError, also for a sweep with tasks.
    """
    found = load_sweeps(path, overrides)
    if "" not in found:
        raise ConfigError(
            f"{path}: has {len(found)} tasks, and only the command line runs sweeps over tasks; use `fibec-ray sweep`"
        )
    return found[""]


def load_sweeps(path: Path, overrides: Sequence[str] = ()) -> dict[str, SweepPlan]:
    """Load the sweep of each task in a sweep file: {task: its sweep}, or {"": the sweep} for a file without tasks.

    `task=a,b` among the overrides picks some of the tasks, `variants=a,b` some of the variants. Raises ConfigError.
    """
    raw = read_sweep(path)
    if not raw.keys() & {"variants", "config"} and raw.keys() & Experiment.model_fields.keys():
        return {"": _grid_sweep(path, overrides)}
    try:
        file = _SweepFile.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, _SweepFile, raw)}") from error
    variants = tuple(_variants(file.variants, path))
    names = [variant.name for variant in variants]
    if file.reference not in names:
        near = did_you_mean(file.reference, names)
        raise ConfigError(f"{path}: reference: no variant is called {file.reference!r}; {near}")
    if len(set(file.seeds)) < len(file.seeds):
        raise ConfigError(f"{path}: seeds: {file.seeds} has a seed twice; give each once")
    _check_names(variants, path)
    tune = tune_file(file.tune, path)
    if tune and (taken := [variant.name for variant in variants if variant.folder == FOLDER]):
        raise ConfigError(f"{path}: variant {taken[0]!r}: tuning runs are in the folder {FOLDER}; rename the variant")
    picked = _picked(variants, overrides, path)
    others = [text for text in overrides if not text.startswith((PICK_VARIANTS, TUNED))]
    record = next((text.removeprefix(TUNED) for text in reversed(overrides) if text.startswith(TUNED)), None)
    if record is not None and not tune:
        raise ConfigError(f"{path}: {TUNED}{record}: has no effect, because this sweep tunes nothing; leave it out")
    return {
        task: _task_sweep(file, tune, path, variants, [one.name for one in picked], (task, common), others, record)
        for task, common in _by_task(file, others, path)
    }


def _task_sweep(
    file: _SweepFile,
    tune: TuneFile | None,
    path: Path,
    every: tuple[Variant, ...],
    picked: Sequence[str],
    of_task: tuple[str, Sequence[str]],
    overrides: Sequence[str],
    record: str | None,
) -> SweepPlan:
    """The sweep of one task.

    picked: names of variants. of_task: the task, and the overrides of all its runs. record: a record of tuned values
    to take.
    """
    task, common = of_task
    every = tuple(replace(one, overrides=tuple(_filled(file, task, one.overrides))) for one in every)
    config, seeds = Path(file.config), tuple(file.seeds)
    variants = tuple(variant for variant in every if variant.name in picked)
    runs = _runs(config, common, variants, seeds, path)
    _refuse_equal(runs, path, tune)
    tuning = None
    if tune:
        changes = _filled(file, task, tune.overrides)
        typed = tuple(text for text in overrides if not (task and text.startswith(PICK)))
        source = Source(path, config, tuple(common), typed, seeds, every, task)
        tuning = tuning_of(tune, source, _checked(changes, f"{path}: tune.overrides"), runs)
    plan = SweepPlan(path, seeds, file.reference, variants, tuple(runs), task, file.table)
    plan = replace(plan, every=() if len(variants) == len(every) else every, tuning=tuning)
    if not tuning or record is None:
        return plan
    return tuned_before(plan, tuning, Path(_filled(file, task, [record])[0]).expanduser())


def _picked(variants: tuple[Variant, ...], overrides: Sequence[str], path: Path) -> tuple[Variant, ...]:
    """The variants that `variants=a,b` names, by name or by folder, in the order of the file; all without it."""
    picks = [text for text in overrides if text.startswith(PICK_VARIANTS)]
    if not picks:
        return variants
    known = {name for variant in variants for name in (variant.name, variant.folder)}
    wanted = list(values(picks[-1].removeprefix(PICK_VARIANTS)))
    for name in wanted:
        if name not in known:
            near = did_you_mean(name, [variant.name for variant in variants])
            raise ConfigError(f"{path}: variants: the sweep has no variant {name!r}; {near}")
    return tuple(variant for variant in variants if variant.name in wanted or variant.folder in wanted)


def _by_task(file: _SweepFile, overrides: Sequence[str], path: Path) -> Iterator[tuple[str, list[str]]]:
    """(task, the overrides of all its runs); one entry with the task "" for a file without tasks."""
    if not file.tasks:
        yield "", _checked([*file.overrides, *overrides], f"{path}: overrides")
        return
    picks = [text for text in overrides if text.startswith(PICK)]
    others = [text for text in overrides if not text.startswith(PICK)]
    names = list(values(picks[-1].removeprefix(PICK))) if picks else list(file.tasks)
    for task, changes in picked_tasks(file.tasks, names, str(path)).items():
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", task):
            raise ConfigError(f"{path}: tasks: {task!r} names a folder too; use lower-case letters, digits and -")
        texts = _filled(file, task, [*file.overrides, f"{PICK}{task}", *changes, *others])
        yield task, _checked(texts, f"{path}: task {task!r}")


def _filled(file: _SweepFile, task: str, texts: Sequence[str]) -> list[str]:
    """Overrides with the name of the task for `{task}`, and its data set for `{set}`: its own `task=`, or its name."""
    if not task:
        return list(texts)
    own = [text.removeprefix(PICK) for text in file.tasks[task] if text.startswith(PICK)]
    data_set = own[-1] if own else task
    return [text.replace("{task}", task).replace("{set}", data_set) for text in texts]


def _grid_sweep(path: Path, overrides: Sequence[str]) -> SweepPlan:
    grid = parse_grid(overrides)
    variants = tuple(_variant(name, "", list(changes), path) for name, changes in grid.variants)
    return _sweep(path, path, grid.common, variants, grid.seeds, variants[0].name)


def _sweep(
    path: Path, config: Path, common: Sequence[str], variants: tuple[Variant, ...], seeds: Sequence[int], reference: str
) -> SweepPlan:
    runs = _runs(config, common, variants, seeds, path)
    refuse_clashes(variants, runs, path)
    return SweepPlan(path, tuple(seeds), reference, variants, tuple(runs))


def refuse_clashes(variants: Sequence[Variant], runs: Sequence[SweepRun], path: Path) -> None:
    """Raise ConfigError for variants that would share a folder, and for two that are the same experiment.

    path: of the sweep, for messages.
    """
    _check_names(variants, path)
    _refuse_equal(runs, path)


def _variants(raw: dict[Any, Any], path: Path) -> Iterator[Variant]:
    """Read variants: a list is one, a mapping is a group of them."""
    for name, value in raw.items():
        if isinstance(value, dict):
            if not value:
                raise ConfigError(f"{path}: variants: group {str(name)!r} is empty; remove it or give it a variant")
            for inner, changes in value.items():
                yield _variant(inner, str(name), changes, path)
        else:
            yield _variant(name, "", value, path)


def _variant(name: Any, group: str, changes: Any, path: Path) -> Variant:
    where = f"{path}: variant {str(name)!r}"
    if not isinstance(changes, list) or not all(isinstance(change, str) for change in changes):
        raise ConfigError(f"{where}: expected a list of key=value such as [method=fedavg], found {changes!r}")
    return Variant(str(name), group, tuple(_checked(changes, where)))


def _check_names(variants: Sequence[Variant], path: Path) -> None:
    """Refuse names that share a folder or do not fit in a table."""
    owners: dict[str, str] = {}
    for variant in variants:
        for text in (variant.name, variant.group):
            if len(text) > MAX_NAME or not all(letter.isprintable() for letter in text):
                raise ConfigError(f"{path}: variants: {text!r}: expected one line of at most {MAX_NAME} characters")
        if not variant.folder:
            raise ConfigError(f"{path}: variant {variant.name!r}: its name needs a letter (a to z) or a digit")
        if variant.folder in owners:
            raise ConfigError(
                f"{path}: variants: {owners[variant.folder]!r} and {variant.name!r} would share the folder "
                f"{variant.folder}; rename one"
            )
        owners[variant.folder] = variant.name


def _runs(
    config: Path, common: Sequence[str], variants: Sequence[Variant], seeds: Sequence[int], path: Path
) -> list[SweepRun]:
    return [load_run(config, common, variant, seed, str(path)) for seed in seeds for variant in variants]


def _refuse_equal(runs: Sequence[SweepRun], path: Path, tune: TuneFile | None = None) -> None:
    """Refuse two variants with equal settings, which are tuned in the same way: one of them has no effect."""
    first = [run for run in runs if run.seed == runs[0].seed]
    for at, run in enumerate(first):
        for other in first[:at]:
            names = (run.variant.name, other.variant.name)
            if run.experiment == other.experiment and settings_tried(tune, names[0]) == settings_tried(tune, names[1]):
                raise ConfigError(
                    f"{path}: variants {other.variant.name!r} and {run.variant.name!r} are the same experiment; "
                    "remove one, or change its overrides"
                )


def _checked(texts: list[str], where: str) -> list[str]:
    """Refuse text that is not key=value, and the key `seed`."""
    for text in texts:
        try:
            keys, _ = parse_override(text)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if keys == ["seed"]:
            raise ConfigError(f"{where}: '{text}': the seeds of a sweep are under its key `seeds`; put it there")
    return texts
