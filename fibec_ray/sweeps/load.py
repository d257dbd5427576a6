"""A sweep file and `key=value` overrides -> one checked Sweep; every mistake becomes one ConfigError.

    config: trec                                # a packaged config, or a path from this file
    overrides: [rounds=15]                      # for all runs (optional)
    seeds: [0, 1, 2]
    reference: fibecfed                         # the variant that the others are compared with
    variants:                                   # name: what it changes
      fibecfed: [method=fibecfed]
      fedavg: [method=fedavg]
      Pacing:                                   # title: variants; a group, a sub-heading of the table
        "pacing: sqrt": [method=fibecfed, method.curriculum.pacing=sqrt]

Or the file is an experiment, and overrides with several values make the grid: `method=fibecfed,fedavg seed=0,1,2`.

Overrides apply in the order sweep, command line, variant, and among them from the shallowest key to the deepest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, StrictInt, StrictStr, ValidationError

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.explain import explain
from fibec_ray.config.load import load_experiment, parse_override, read_yaml, with_path
from fibec_ray.config.names import SUFFIXES, find_config
from fibec_ray.errors import ConfigError, UserError, did_you_mean
from fibec_ray.sweeps.grid import parse_grid

MAX_NAME = 100
"""characters in a variant's name, which names a folder too"""


@dataclass(frozen=True)
class Variant:
    """One variant of a sweep: its name and what it changes."""

    name: str
    group: str
    """title of its group; '' without one"""
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name of the variant's folder: 'pacing: sqrt' -> 'pacing-sqrt'."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: a variant with a seed."""

    variant: Variant
    seed: int
    experiment: Experiment

    @property
    def label(self) -> str:
        """Variant and seed, for messages."""
        return f"{self.variant.name}, seed {self.seed}"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep whose runs have all been checked."""

    path: Path
    seeds: tuple[int, ...]
    reference: str
    variants: tuple[Variant, ...]
    runs: tuple[SweepRun, ...]
    """seed by seed, so that a stopped sweep is a complete comparison over the seeds it reached"""


class _SweepFile(BaseModel, extra="forbid"):
    """The keys of a sweep file; _variants checks `variants`."""

    config: StrictStr = Field(min_length=1)
    overrides: list[StrictStr] = []
    seeds: list[Annotated[StrictInt, Field(ge=0)]] = Field(min_length=1)
    reference: StrictStr
    variants: dict[Any, Any] = Field(min_length=1)


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepPlan:
    """Load a sweep from its file, or from an experiment and overrides with several values. Raises ConfigError."""
    raw = read_yaml(path)
    _refuse_twice(path)
    if not raw.keys() & {"variants", "config"} and raw.keys() & Experiment.model_fields.keys():
        return _grid_sweep(path, overrides)
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
    for text in (*file.overrides, *overrides):
        _check_override(text, f"{path}: overrides")
    common = (*(with_path(text, path.parent) for text in file.overrides), *overrides)
    return _sweep(path, _config(file.config, path), common, variants, file.seeds, file.reference)


def _config(text: str, path: Path) -> Path:
    """The experiment that the sweep file `path` names: a file beside it, or the name of a packaged one."""
    beside = path.parent / text
    if beside.exists() or text.endswith(SUFFIXES):
        return beside
    try:
        return find_config(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: config: {error}") from error


def _grid_sweep(path: Path, overrides: Sequence[str]) -> SweepPlan:
    grid = parse_grid(overrides)
    variants = tuple(_variant(name, "", list(changes), path) for name, changes in grid.variants)
    return _sweep(path, path, grid.common, variants, grid.seeds, variants[0].name)


def _sweep(
    path: Path, config: Path, common: Sequence[str], variants: tuple[Variant, ...], seeds: Sequence[int], reference: str
) -> SweepPlan:
    runs = _runs(config, common, variants, seeds, path, Path() if config == path else path.parent)
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
    for change in changes:
        _check_override(change, where)
    return Variant(str(name), group, tuple(changes))


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
    config: Path, common: Sequence[str], variants: Sequence[Variant], seeds: Sequence[int], path: Path, folder: Path
) -> list[SweepRun]:
    """folder: paths in the variants' overrides are relative to it."""
    runs = []
    for seed in seeds:
        for variant in variants:
            try:
                changes = [with_path(text, folder) for text in variant.overrides]
                experiment = load_experiment(config, [*common, *changes, f"seed={seed}"])
            except UserError as error:
                raise ConfigError(f"{path}: variant {variant.name!r}: {error}") from error
            runs.append(SweepRun(variant, seed, experiment))
    return runs


def _refuse_equal(runs: Sequence[SweepRun], path: Path) -> None:
    """Refuse two variants with equal settings: one of them has no effect."""
    first = [run for run in runs if run.seed == runs[0].seed]
    for at, run in enumerate(first):
        for other in first[:at]:
            if run.experiment == other.experiment:
                raise ConfigError(
                    f"{path}: variants {other.variant.name!r} and {run.variant.name!r} are the same experiment; "
                    "remove one, or change its overrides"
                )


def _check_override(text: str, where: str) -> None:
    """Refuse text that is not key=value, and the key `seed`."""
    try:
        keys, _ = parse_override(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if keys == ["seed"]:
        raise ConfigError(f"{where}: '{text}': the seeds of a sweep are under its key `seeds`; put it there")


def _refuse_twice(path: Path) -> None:
    """Refuse a key that is in a mapping twice: YAML would drop the first."""
    stack: list[yaml.Node | None] = [yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)]
    while stack:
        node = stack.pop()
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise ConfigError(
                        f"{path}: line {key.start_mark.line + 1}: '{key.value}' is there twice; rename one"
                    )
                seen.add(str(key.value))
                stack.append(value)
        elif isinstance(node, yaml.SequenceNode):
            stack.extend(node.value)
