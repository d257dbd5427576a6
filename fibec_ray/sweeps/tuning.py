"""Reads the section `tune` of a sweep file, and plans its runs. Called by load.py; tune.py runs them.

tune:
  values: {local.learning_rate: [1e-3, 3e-3, 1e-2]}         # every combination, if there are several keys
  seed: 100                                                 # not one of the sweep's seeds
  overrides: [task.eval_split=null]                         # of tuning runs only: hold out training rows
  variants:                                                 # exceptions (optional)
    p-tuning-v2: {local.learning_rate: [1e-2, 1e-1]}        # values of its own
    random order: fibecfed                                  # takes the choice of another variant
    zero-shot: {}                                           # is not tuned
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
)

from fibec_ray.config.explain import explain
from fibec_ray.config.load import load_experiment
from fibec_ray.config.reading import parse_override
from fibec_ray.errors import ConfigError, UserError, did_you_mean
from fibec_ray.sweeps.plan import Candidate, SweepPlan, SweepRun, Tuning, Variant
from fibec_ray.sweeps.tuning_rows import about_rows

FOLDER = "tuning"
"""Folder of the tuning runs, in that of the sweep."""

Values = Annotated[list[StrictBool | StrictInt | StrictFloat | StrictStr], Field(min_length=1)]


OtherTuning = Annotated[
    Annotated[StrictStr, Tag("name")] | Annotated[dict[StrictStr, Values], Tag("values")],
    Discriminator(lambda found: "name" if isinstance(found, str) else "values"),
]
"""The name of another variant, or values by key."""


class TuneFile(BaseModel, extra="forbid"):
    """The section `tune` of a sweep file."""

    values: dict[StrictStr, Values] = Field(min_length=1)
    seed: Annotated[StrictInt, Field(ge=0)]
    overrides: list[StrictStr] = []
    variants: dict[StrictStr, OtherTuning] = {}


def tune_file(raw: Any, path: Path) -> TuneFile | None:
    """Read the section of a sweep file; None without one. Raises ConfigError."""
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: tune: expected keys such as values and seed, found {raw!r}")
    try:
        return TuneFile.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: tune.{explain(error, TuneFile, raw)}") from error


@dataclass(frozen=True)
class Source:
    """The sweep that is tuned, as its file and the command line describe it."""

    path: Path
    config: Path
    common: tuple[str, ...]
    """overrides of all runs"""
    command_line: tuple[str, ...]
    """those of `common` that the command line gave"""
    seeds: tuple[int, ...]
    every: tuple[Variant, ...]
    """all variants of the file, picked or not"""
    task: str = ""


def tuning_of(file: TuneFile, source: Source, overrides: Sequence[str], runs: Sequence[SweepRun]) -> Tuning | None:
    """Plan the tuning runs; None if no picked variant is tuned. Raises ConfigError.

    overrides: of tuning runs, checked. runs: of the sweep, without chosen values.
    """
    where = f"{source.path}: tune"
    grids, sources = _assigned(file, source, where)
    if file.seed in source.seeds:
        raise ConfigError(
            f"{where}.seed: {file.seed} is also one of `seeds`, so values would be chosen on a run that counts; "
            "choose another number"
        )
    needed = {sources[run.variant.name] for run in runs if run.variant.name in sources}
    if not needed:
        return None
    tuned = [variant for variant in source.every if variant.name in needed]
    candidates = {one.name: _candidates(one, grids[one.name], overrides, where) for one in tuned}
    plan = _plan(source, file.seed, [each for found in candidates.values() for each in found], where)
    picked = {run.variant.name: sources[run.variant.name] for run in runs if run.variant.name in sources}
    notes = about_rows(plan.runs, runs, f"{where}.overrides")
    return Tuning(plan, candidates, picked, source.config, source.common, notes)


def settings_tried(file: TuneFile | None, variant: str) -> object:
    """What tuning does with a variant. Variants with equal overrides still differ if this does."""
    return file and file.variants.get(variant, file.values)


def _assigned(file: TuneFile, source: Source, where: str) -> tuple[dict[str, dict[str, list[str]]], dict[str, str]]:
    """({tuned variant: its values}, {variant: the variant whose choice it takes})."""
    names = [variant.name for variant in source.every]
    for name in file.variants:
        if name not in names:
            raise ConfigError(f"{where}.variants: no variant is called {name!r}; {did_you_mean(name, names)}")
    given = {name: file.variants.get(name, file.values) for name in names}
    tuned = {name: value for name, value in given.items() if isinstance(value, dict) and value}
    sources = {name: value for name, value in given.items() if isinstance(value, str)}
    for name, other in sources.items():
        if other not in tuned:
            raise ConfigError(
                f"{where}.variants: {name!r} takes the choice of {other!r}, which is not a tuned variant; "
                f"{did_you_mean(other, list(tuned)) if tuned else 'give values to tune'}"
            )
    grids = {name: _grid(values, where) for name, values in tuned.items()}
    sources |= {name: name for name in tuned}
    for variant in source.every:
        if variant.name in sources:
            own = ((text, f"variant {variant.name!r}") for text in variant.overrides)
            typed = ((text, "the command line") for text in source.command_line)
            _refuse_set([*own, *typed], grids[sources[variant.name]], where)
    return grids, sources


def _refuse_set(texts: Sequence[tuple[str, str]], grid: Mapping[str, list[str]], where: str) -> None:
    """Refuse overrides of keys that are tuned. texts: overrides, each with the place it comes from."""
    for text, who in texts:
        key = ".".join(parse_override(text)[0])
        if key in {".".join(parse_override(f"{one}=0")[0]) for one in grid}:
            raise ConfigError(f"{where}: {who} sets {key}, which is tuned here; remove one of the two")


def _grid(values: Mapping[str, Sequence[object]], where: str) -> dict[str, list[str]]:
    """Values as text, numbers from small to large. Raises ConfigError for a value that is there twice."""
    found: dict[str, list[str]] = {}
    for key, listed in values.items():
        keys, _ = parse_override(f"{key}=0")
        if keys == ["seed"]:
            raise ConfigError(f"{where}.values: seed cannot be tuned; remove it")
        texts = [as_text(value) for value in listed]
        numbers = [number_of(text) for text in texts]
        ordered = texts if None in numbers else sorted(texts, key=lambda text: number_of(text) or 0.0)
        if len({text if number is None else number for text, number in zip(texts, numbers, strict=True)}) < len(texts):
            raise ConfigError(f"{where}.values: {key}: {', '.join(texts)} has a value twice; give each once")
        found[key] = ordered
    return found


def as_text(value: object) -> str:
    """A value of a sweep file as in an override: true -> 'true', 0.01 -> '0.01'."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def number_of(text: str) -> float | None:
    """'1e-3' -> 0.001; None for a text that is not a number."""
    with suppress(ValueError):
        return float(text)
    return None


def _candidates(
    variant: Variant, grid: Mapping[str, list[str]], overrides: Sequence[str], where: str
) -> tuple[Candidate, ...]:
    found = []
    for texts in product(*grid.values()):
        values = tuple(zip(grid, texts, strict=True))
        changes = tuple(f"{key}={text}" for key, text in values)
        name = " ".join([variant.name, *changes])
        found.append(Candidate(values, Variant(name, variant.name, (*variant.overrides, *overrides, *changes))))
    return tuple(found)


def _plan(source: Source, seed: int, candidates: Sequence[Candidate], where: str) -> SweepPlan:
    owners: dict[str, str] = {}
    runs = []
    for variant in (candidate.variant for candidate in candidates):
        if variant.folder in owners:
            raise ConfigError(
                f"{where}.values: {owners[variant.folder]!r} and {variant.name!r} would share the folder "
                f"{variant.folder}; leave one of them out, or run it in another sweep"
            )
        owners[variant.folder] = variant.name
        runs.append(load_run(source.config, source.common, variant, seed, where))
    variants = tuple(run.variant for run in runs)
    task = ", ".join(filter(None, (source.task, FOLDER)))
    return SweepPlan(source.path, (seed,), variants[0].name, variants, tuple(runs), task)


def load_run(config: Path, common: Sequence[str], variant: Variant, seed: int, where: str) -> SweepRun:
    """Load the experiment of one run. Raises ConfigError, which names the variant."""
    try:
        experiment = load_experiment(config, [*common, *variant.overrides, f"seed={seed}"])
    except UserError as error:
        raise ConfigError(f"{where}: variant {variant.name!r}: {error}") from error
    return SweepRun(variant, seed, experiment)


def with_values(sweep: SweepPlan, tuning: Tuning, values: Mapping[str, tuple[str, ...]], where: str) -> SweepPlan:
    """The sweep with tuned values, and without tuning. values: {variant: overrides}. where: for messages.

    Raises ConfigError.
    """
    variants = tuple(replace(one, overrides=(*one.overrides, *values.get(one.name, ()))) for one in sweep.variants)
    runs = [load_run(tuning.config, tuning.common, one, seed, where) for seed in sweep.seeds for one in variants]
    return replace(sweep, variants=variants, runs=tuple(runs), tuning=None)
