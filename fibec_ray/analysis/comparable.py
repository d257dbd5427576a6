"""Checks whether runs may share one table: same data, partition and model, all finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fibec_ray.analysis.files import FINISHED
from fibec_ray.analysis.log import RunLog
from fibec_ray.analysis.variants import Collection
from fibec_ray.errors import UserError

SAME = ("task", "data", "partition", "num_devices", "backbone")
"""Settings of config.yaml that comparable runs share."""


def refuse_incomparable(collection: Collection) -> None:
    """Raise UserError if settings differ or runs are unfinished; it names each setting with both values."""
    found = [*differences(collection), *unfinished(collection)]
    if found:
        raise UserError(
            f"these runs are not comparable: {'; '.join(found)}. Give finished runs with the same settings, or add "
            "--anyway"
        )


def unfinished(collection: Collection) -> list[str]:
    """One line for each run whose summary has another status than finished."""
    return [
        f"{name} has the status '{run.summary['status']}'"
        for name, run in _named(collection)
        if run.summary.get("status", FINISHED) != FINISHED
    ]


def differences(collection: Collection) -> list[str]:
    """One line for each setting that is not the same in all runs: its value in the first run and in another."""
    runs = _named(collection)
    found: dict[str, str] = {}
    for name, run in runs[1:]:
        for setting, mine, other in _different(runs[0][1], run):
            found.setdefault(setting, f"{setting} is {mine!r} in {runs[0][0]} and {other!r} in {name}")
    return list(found.values())


def _named(collection: Collection) -> list[tuple[str, RunLog]]:
    return [
        (f"{variant.name}, seed {seed}", run) for variant in collection.variants for seed, run in variant.runs.items()
    ]


def _different(first: RunLog, second: RunLog) -> Iterator[tuple[str, Any, Any]]:
    for key in SAME:
        left, right = _flat(key, first.config.get(key)), _flat(key, second.config.get(key))
        for setting in sorted(left.keys() | right.keys()):
            if left.get(setting) != right.get(setting):
                yield setting, left.get(setting), right.get(setting)


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Flatten nested mappings: {'data.path': ...}."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {name: leaf for key, entry in value.items() for name, leaf in _flat(f"{prefix}.{key}", entry).items()}
