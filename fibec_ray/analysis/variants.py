"""Groups runs: runs or sweep folders -> variants with one run per seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from fibec_ray.analysis.files import FINISHED, parsed
from fibec_ray.analysis.log import RunLog, open_run
from fibec_ray.analysis.places import Place, place
from fibec_ray.errors import RunDirError


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed only."""

    name: str
    group: str
    """title of its group in the sweep file; '' without one"""
    runs: Mapping[int, RunLog]
    """by seed"""


@dataclass(frozen=True)
class Collection:
    """Runs grouped into variants."""

    name: str
    variants: tuple[Variant, ...]
    reference: str | None
    """the sweep's reference; None for runs outside a sweep"""
    num_seeds: int

    def table(self, name: str) -> pl.LazyFrame:
        """Join one table of all runs, with two more columns: `variant` and `seed`."""
        return pl.concat(
            run.table(name).with_columns(variant=pl.lit(variant.name), seed=pl.lit(seed))
            for variant in self.variants
            for seed, run in variant.runs.items()
        )


def collect(places: Sequence[str | Path]) -> Collection:
    """Collect runs from run directories and sweep folders (finished runs only). Raises RunDirError."""
    roots = [place(where) for where in places]
    if len(roots) == 1 and is_sweep(roots[0]):
        return sweep(roots[0])
    runs: list[RunLog] = []
    for root in roots:
        if is_sweep(root):
            runs += [run for variant in sweep(root).variants for run in variant.runs.values()]
        else:
            runs.append(open_run(root.shown))
    variants = _grouped(runs)
    return Collection("runs", variants, None, max(len(variant.runs) for variant in variants))


def sweep(root: Place) -> Collection:
    """Read the finished runs that DIR/sweep.yaml names."""
    record = _record(root)
    variants = [
        Variant(entry["name"], entry["group"], _finished(root / entry["folder"], record["seeds"]))
        for entry in record["variants"]
    ]
    return Collection(str(record["name"]), tuple(variants), record["reference"], len(record["seeds"]))


def is_sweep(root: Place) -> bool:
    """True if the folder is that of a sweep over one task."""
    return "sweep.yaml" in root.files()


def _record(root: Place) -> dict[str, Any]:
    """Read sweep.yaml, which `fibec-ray sweep` wrote when it started."""
    record = parsed(f"{root.shown}/sweep.yaml", root.read_text("sweep.yaml") or "")
    if not record:
        raise RunDirError(f"{root.shown}: no sweep here; is it the --out folder of `fibec-ray sweep`?")
    keys = {"name", "reference", "seeds", "variants"}
    if not keys <= record.keys() or not _is_record(record):
        raise RunDirError(
            f"{root.shown}/sweep.yaml: is not the record of a sweep; expected the keys {', '.join(sorted(keys))}"
        )
    return record


def _is_record(record: Mapping[str, Any]) -> bool:
    """Whether every value has the right type and no folder is outside the sweep's."""
    variants, seeds = record["variants"], record["seeds"]
    return (
        isinstance(variants, list)
        and all(_is_variant(entry) for entry in variants)
        and isinstance(seeds, list)
        and all(isinstance(seed, int) for seed in seeds)
        and isinstance(record["reference"], str | None)
    )


def _is_variant(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "group", "folder")):
        return False
    return ".." not in PurePosixPath(entry["folder"]).parts


def _finished(folder: Place, seeds: Sequence[int]) -> dict[int, RunLog]:
    """{seed: its run}"""
    found = {}
    for seed in seeds:
        here = folder / f"seed-{seed}"
        summary = parsed(f"{here.shown}/summary.json", here.read_text("summary.json") or "")
        if summary.get("status") == FINISHED:
            found[seed] = open_run(here.shown)
    return found


def _grouped(runs: Sequence[RunLog]) -> tuple[Variant, ...]:
    """Group by method; where that gives two runs of one seed, by experiment name, then by folder."""
    if not runs:
        raise RunDirError("none of these sweeps has a finished run yet")
    seeded = [(run, run.seed) for run in runs]
    for name_of in _NAMES:
        found: dict[str, dict[int, RunLog]] = {}
        for run, seed in seeded:
            found.setdefault(name_of(run), {})[seed] = run
        if sum(map(len, found.values())) == len(runs):
            return tuple(Variant(name, "", by_seed) for name, by_seed in found.items())
    raise RunDirError("the same run is named twice; name each run once")


_NAMES: tuple[Callable[[RunLog], str], ...] = (
    lambda run: str(run.fact("method") or run.fact("name") or run.place.name),
    lambda run: str(run.fact("name") or run.place.name),
    lambda run: (run.place.parent if run.place.name.startswith("seed-") else run.place).name,  # of the variant
    lambda run: run.place.path,
)
