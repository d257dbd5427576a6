"""Reads a record of tuned values. Called by load.py for `tuned=FILE`, and by tuned_record.py, which writes them.

variants:
  fedavg:
    chosen: {local.learning_rate: 1e-2}     # what tuning wrote beside it is not needed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fibec_ray.config.reading import read_yaml
from fibec_ray.errors import ConfigError, did_you_mean
from fibec_ray.sweeps.plan import SweepPlan, Tuning
from fibec_ray.sweeps.tuning import as_text, with_values

RECORD = "tuned.yaml"
"""Name of the record in the folder of a sweep."""


def entries_of(record: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """What the content of a file says about each variant; None if it is no record of tuned values."""
    found = record.get("variants")
    return found if isinstance(found, dict) and all(_is_entry(entry) for entry in found.values()) else None


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    tried = entry.get("tried", [])
    return isinstance(tried, list) and all(isinstance(one, dict) and {"values", "score"} <= one.keys() for one in tried)


def tuned_before(sweep: SweepPlan, tuning: Tuning, path: Path) -> SweepPlan:
    """The sweep with the values of a record instead of tuning, and a note for each variant. Raises ConfigError."""
    chosen = _chosen_in(path, tuning, sweep.seeds)
    notes = tuple(f"{name}: {' '.join(values)} (tuned before)" for name, values in chosen.items())
    return replace(with_values(sweep, tuning, chosen, f"{sweep.path}: values of {path}"), notes=notes)


def _chosen_in(path: Path, tuning: Tuning, seeds: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """{variant: its chosen values, as overrides} from a record, for all variants that the sweep would tune.

    seeds: of the sweep. Raises ConfigError, also if the record lacks a variant, has values of other keys, or comes from
    one of the seeds.
    """
    record = read_yaml(path)
    entries = entries_of(record)
    if entries is None:
        raise ConfigError(f"{path}: is not a record of tuned values; give the {RECORD} of a sweep")
    if (seed := record.get("seed")) in seeds:
        raise ConfigError(
            f"{path}: its values were chosen with seed {seed}, which is also one of the sweep's `seeds`, so they would "
            "be chosen on a run that counts; leave out tuned=, or change the seeds"
        )
    chosen = {name: entry["chosen"] for name, entry in entries.items() if isinstance(entry.get("chosen"), dict)}
    keys = {name: [key for key, _ in candidates[0].values] for name, candidates in tuning.candidates.items()}
    found = {name: _overrides(path, chosen, name, keys[name]) for name in keys}
    return {name: found[other] for name, other in tuning.source.items()}


def _overrides(path: Path, chosen: Mapping[str, dict[Any, Any]], name: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Overrides of the chosen values of one variant. keys: what the sweep tunes."""
    if name not in chosen:
        near = f" ({did_you_mean(name, list(chosen))})" if chosen else ""
        raise ConfigError(f"{path}: has no chosen value for the variant {name!r}{near}; add it, or leave out tuned=")
    found = chosen[name]
    if set(found) != set(keys):
        there = ", ".join(map(str, found)) or "nothing"
        raise ConfigError(
            f"{path}: variant {name!r} has values of {there}, and the sweep tunes {', '.join(keys)}; "
            "give these keys, or leave out tuned="
        )
    return tuple(f"{key}={as_text(found[key])}" for key in keys)
