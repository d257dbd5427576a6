"""Turns the arguments of `fibec_ray.sweep` into the runs of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from fibec_ray.api.settings import Source, experiment_of, overrides_of
from fibec_ray.config.names import find_config
from fibec_ray.config.reading import read_yaml
from fibec_ray.errors import ConfigError
from fibec_ray.sweeps.load import load_sweep, refuse_clashes
from fibec_ray.sweeps.plan import SweepPlan, SweepRun, Variant


def planned_sweep(
    source: Source | None,
    vary: Mapping[str, Sequence[Any]] | None,
    seeds: int | Sequence[int] | None,
    changes: Mapping[str, Any],
) -> SweepPlan:
    """Check every run of a sweep before the first one starts. Raises ConfigError."""
    if isinstance(source, str | Path) and vary is None:
        file = _sweep_file(source)
        if seeds is not None:
            raise ConfigError(f"seeds: the sweep file {file} has its own; leave `seeds` out, or change them there")
        return load_sweep(file, list(overrides_of(changes)))
    combinations = _combinations(vary)
    variants = tuple(Variant(_name(one), "", tuple(overrides_of(one))) for one in combinations)
    numbers = _seeds(3 if seeds is None else seeds)
    runs = tuple(
        SweepRun(variant, seed, experiment_of(source, {**changes, **one, "seed": seed}))
        for seed in numbers
        for variant, one in zip(variants, combinations, strict=True)
    )
    path = Path(runs[0].experiment.name)
    refuse_clashes(variants, runs, path)
    return SweepPlan(path, numbers, variants[0].name, variants, runs)


def _sweep_file(source: str | Path) -> Path:
    path = find_config(str(source), ("sweeps", "experiments"))
    if not read_yaml(path).keys() & {"variants", "extends"}:
        raise ConfigError(
            f"{source}: nothing to compare; give several values, such as vary={{'method': ['fibecfed', 'fedavg']}}, or "
            "the path of a sweep file"
        )
    return path


def _combinations(vary: Mapping[str, Sequence[Any]] | None) -> list[dict[str, Any]]:
    """{"method": [a, b], "rounds": [1, 2]} -> [{"method": a, "rounds": 1}, {"method": a, "rounds": 2}, ...]."""
    if not vary:
        raise ConfigError("vary: nothing to compare; give several values, such as vary={'method': ['fedavg', 'ditto']}")
    for key, values in vary.items():
        if isinstance(values, str | Mapping) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"vary: {key}: expected a list of values, found {values!r}")
        if key == "seed":
            raise ConfigError("vary: seed: give the seeds of a sweep as seeds=[0, 1, 2]")
    return [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]


def _name(changes: Mapping[str, Any]) -> str:
    """'fibecfed cohort_size=10': a method is known by its name, any other value with its key."""
    words = {
        key: str(getattr(value, "name", None) or getattr(value, "kind", None) or value)
        for key, value in changes.items()
    }
    return " ".join(word if key == "method" else f"{key}={word}" for key, word in words.items())


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    found = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not found or len(set(found)) < len(found) or not all(type(seed) is int and seed >= 0 for seed in found):
        raise ConfigError(f"seeds: expected how many, or a list of different whole numbers, found {seeds!r}")
    return found
