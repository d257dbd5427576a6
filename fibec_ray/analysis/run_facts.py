"""The top of a run's page: main score, settings, date and version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fibec_ray.analysis.log import RunLog
from fibec_ray.analysis.scores import Score
from fibec_ray.analysis.tables import RunTables
from fibec_ray.analysis.units import BYTES, readable

QUIET_KEYS = ("kind", "name", "min_samples")
"""Left out of the line that describes a partition."""


@dataclass(frozen=True)
class Headline:
    """The number at the top of a run's page."""

    value: str
    label: str
    note: str


def headline_of(scores: list[Score]) -> Headline | None:
    """The final score of the personal models, or else of the global one; None before the first evaluation."""
    if not scores:
        return None
    score = next((each for each in scores if each.column.startswith("personal_")), scores[0])
    parts = [f"after round {score.final_after}"]
    if score.best > score.final:
        parts.append(f"best {score.best:.4f} after round {score.best_after}")
    other = next((each for each in scores if each.column.startswith("global_") and each is not score), None)
    if other is not None:
        parts.append(f"{other.label[0].lower()}{other.label[1:]} {other.final:.4f}")
    if score.anchor is not None:
        parts.append(f"{score.anchor_label} {score.anchor:.4f}")
    return Headline(f"{score.final:.4f}", score.label, " · ".join(parts))


def facts_of(log: RunLog, tables: RunTables) -> list[tuple[str, str]]:
    """(label, value), without those that neither the log nor the run directory knows."""
    done, planned = tables.rounds_done(), log.fact("rounds")
    devices = log.summary.get("num_devices") or log.fact("num_devices") or max(tables.column("num_devices"))
    config = log.config
    found = [
        ("method", log.fact("method") or _at(config, "method", "name")),
        ("task", log.fact("task") or _at(config, "task", "name")),
        ("backbone", _at(config, "backbone", "name") or _at(config, "backbone", "kind")),
        ("rank", _rank(config)),
        ("learning rate", _short(_at(config, "local", "learning_rate"))),
        ("partition", _partition(config)),
        ("devices", devices),
        ("devices per round", log.fact("cohort_size")),
        ("rounds", f"{done} of {planned}" if planned and planned != done else done),
        ("metric", log.fact("metric")),
        ("seed", log.fact("seed")),
        ("computed on", log.fact("device")),
        ("lanes", log.fact("lanes")),
        ("peak GPU memory", _peak_gpu_memory(tables)),
        ("date", _date(log)),
        ("fibec_ray", log.fact("version")),
    ]
    return [(label, str(value)) for label, value in found if value is not None]


def _peak_gpu_memory(tables: RunTables) -> str | None:
    """Of any process, with CUDA's context; None for a run on CPUs."""
    peak = tables.devices.get_column("peak_gpu_memory_bytes").max()
    return None if peak is None else readable(float(peak), BYTES)  # type: ignore[arg-type]


def _at(config: Mapping[str, Any], *keys: str) -> Any:
    """A plain value deep in the config; None where it is not there, or is not plain."""
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str | int | float) else None


def _rank(config: Mapping[str, Any]) -> Any:
    """Of LoRA and its relatives; other adapters have none."""
    method = config.get("method")
    peft = method.get("peft") if isinstance(method, Mapping) else None
    ranks = peft.get("ranks") if isinstance(peft, Mapping) else None
    if isinstance(ranks, list) and ranks and all(isinstance(rank, int) for rank in ranks):
        return f"{min(ranks)} to {max(ranks)}"
    return _at(config, "method", "peft", "r")


def _partition(config: Mapping[str, Any]) -> str | None:
    """'dirichlet label (alpha 1, size alpha 5)'"""
    partition, kind = config.get("partition"), _at(config, "partition", "kind")
    if not isinstance(partition, Mapping) or kind is None:
        return None
    plain = {key: _at(partition, key) for key in partition if key not in QUIET_KEYS}
    settings = ", ".join(f"{_words(key)} {_short(value)}" for key, value in plain.items() if value is not None)
    return f"{_words(str(kind))} ({settings})" if settings else _words(str(kind))


def _date(log: RunLog) -> str | None:
    """When the run started (UTC), or for runs of older versions when its first round was logged."""
    started = log.fact("started")
    if isinstance(started, str):
        return f"{started[:16].replace('T', ' ')} UTC"
    if not log.place.is_local:
        return None
    written = (Path(log.place.path) / "rounds" / log.parts[0]).stat().st_mtime
    return f"{datetime.fromtimestamp(written, UTC):%Y-%m-%d %H:%M} UTC"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value
