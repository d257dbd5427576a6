"""What a sweep is once its file has been read: variants, runs, and what is tuned first. Made by load.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fibec_ray.config.experiment import Experiment

TableName = Literal["sweep", "paper"]


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
class Candidate:
    """Values that tuning tries for one variant, and the variant of the tuning runs that has them."""

    values: tuple[tuple[str, str], ...]
    """(key, value) as the sweep file has them"""
    variant: Variant

    @property
    def overrides(self) -> tuple[str, ...]:
        """The values as overrides: 'local.learning_rate=1e-2'."""
        return tuple(f"{key}={value}" for key, value in self.values)


@dataclass(frozen=True)
class Tuning:
    """The runs that choose settings of variants before the runs with the sweep's seeds."""

    runs: SweepPlan
    """a sweep of its own: one variant per candidate, one seed"""
    candidates: Mapping[str, tuple[Candidate, ...]]
    """by tuned variant, the smallest values first"""
    source: Mapping[str, str]
    """{variant: the variant whose choice it takes}; a tuned variant takes its own"""
    config: Path
    """the experiment of the sweep"""
    common: tuple[str, ...]
    """overrides of all runs of the sweep"""
    notes: tuple[str, ...] = ()
    """what to know about the rows that candidates are scored on"""


@dataclass(frozen=True)
class SweepPlan:
    """A sweep whose runs have all been checked."""

    path: Path
    seeds: tuple[int, ...]
    reference: str
    variants: tuple[Variant, ...]
    runs: tuple[SweepRun, ...]
    """seed by seed, so that a stopped sweep is a complete comparison over the seeds it reached"""
    task: str = ""
    """the task of this sweep, one of several in its file; '' if the file has no tasks"""
    table: TableName = "sweep"
    """what `fibec-ray sweep` ends with; paper: also the tables and the figure of `fibec-ray paper-table`"""
    every: tuple[Variant, ...] = ()
    """all variants of the file, if only some were picked; those that ran before stay in the table"""
    tuning: Tuning | None = None
    """None if nothing is tuned; else `runs` do not have the chosen values yet"""
    notes: tuple[str, ...] = ()
    """lines to show first, such as values from a record of tuned values"""

    @property
    def name(self) -> str:
        """Name of the file, with the task: 'accuracy, trec'."""
        return ", ".join(filter(None, (self.path.stem, self.task)))


@dataclass(frozen=True)
class Failure:
    """A run of a sweep that did not finish, and the error that ended it."""

    run: SweepRun
    reason: str
    task: str = ""
    """the sweep's task, if its file has several"""

    @property
    def label(self) -> str:
        """Task, variant and seed, for messages."""
        return ", ".join(filter(None, (self.task, self.run.label)))
