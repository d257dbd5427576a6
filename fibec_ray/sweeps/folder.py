"""The sweep's folder: finds what is in it already, and refuses folders that hold something else.

OUT/sweep.yaml              the record that the analysis reads
OUT/VARIANT/seed-N/         a run directory
OUT/VARIANT/seed-N.yaml     its configuration
OUT/VARIANT/seed-N.log      what it printed
OUT/tuning/                 the tuning runs, in a folder like OUT itself
OUT/tuned.yaml              the values that they chose, with all scores

A sweep over several tasks has one such folder for each of them: OUT/TASK/sweep.yaml and so on.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fibec_ray.checkpoints.identity import read_identity
from fibec_ray.config.device_files import with_kept_paths
from fibec_ray.config.load import first_difference, load_saved
from fibec_ray.config.reading import read_yaml
from fibec_ray.errors import RunDirError, UserError
from fibec_ray.files.run_dir import alone, half_made, next_free, refuse_driver, write_yaml
from fibec_ray.files.run_dir.leftovers import holds_run
from fibec_ray.runs.callbacks import read_summary
from fibec_ray.runs.records import binding, read_record
from fibec_ray.runs.simulation import resolved
from fibec_ray.sweeps.plan import SweepPlan, SweepRun, Variant

RECORD = "sweep.yaml"
LOCK = ".lock"
_PASSING = re.compile(r"\.lock|\.sweep\.yaml\.\d+\.part")
"""Files that a sweep may leave if it is stopped before its record is written."""


def folder_of(run: SweepRun, out: Path) -> Path:
    """The run directory of one run of a sweep."""
    return out / run.variant.folder / f"seed-{run.seed}"


def locked(out: Path) -> AbstractContextManager[None]:
    """Makes the folder and keeps other sweeps out. Raises RunDirError."""
    busy = f"{out}: another sweep is running here; wait for it, or choose another --out"
    return alone(out, out / LOCK, busy, "; choose another --out")


def refuse_mixture(out: Path, tasks: Collection[str]) -> None:
    """Raise RunDirError if a sweep over these tasks would begin in the folder of a sweep without tasks."""
    if "" not in tasks and (out / RECORD).exists():
        raise RunDirError(f"{out}: holds a sweep without tasks, and this one has {len(tasks)}; choose another --out")


def refuse_other_contents(out: Path, sweep: SweepPlan) -> None:
    """Raise RunDirError unless the folder is empty or holds a sweep."""
    record = out / RECORD
    if record == sweep.path.resolve():
        raise RunDirError(f"{record}: the sweep file is where the sweep's record would go; choose another --out")
    if not record.exists() and any(not _PASSING.fullmatch(path.name) for path in out.iterdir()):
        raise RunDirError(f"{out}: is not empty and does not hold a sweep; choose another --out, or remove it")
    if record.exists() and not isinstance(read_yaml(record).get("variants"), list):
        raise RunDirError(f"{record}: is not the record of a sweep; choose another --out, or move it away")


def write_record(sweep: SweepPlan, out: Path) -> None:
    """Write DIR/sweep.yaml for the analysis: the reference, and names, groups and folders in table order.

    Of variants that were not picked, the reference and those that the record had before stay in it.
    """
    before = _entries(out)
    entries = {variant.name: _entry(variant) for variant in sweep.variants}
    for variant in sweep.every:
        if variant.name not in entries and (variant.name in before or variant.name == sweep.reference):
            entries[variant.name] = before.get(variant.name, _entry(variant))
    ordered = [entries[variant.name] for variant in sweep.every or sweep.variants if variant.name in entries]
    record = {"name": sweep.name, "seeds": list(sweep.seeds), "reference": sweep.reference, "variants": ordered}
    write_yaml(out / RECORD, record)


def _entry(variant: Variant) -> dict[str, Any]:
    return {
        "name": variant.name, "group": variant.group, "folder": variant.folder, "overrides": list(variant.overrides)
    }  # fmt: skip


def _entries(out: Path) -> dict[str, dict[str, Any]]:
    """The variants in the record of a folder, by name; {} without a record."""
    found = read_yaml(out / RECORD)["variants"] if (out / RECORD).exists() else []
    return {each["name"]: each for each in found if isinstance(each, dict) and isinstance(each.get("name"), str)}


def is_finished(run: SweepRun, folder: Path) -> bool:
    """True if the folder holds a finished run of this experiment; False for an unfinished one, or none.

    Raises RunDirError if it holds a run of another experiment, or something else.
    """
    if not folder.exists():
        return False
    if not folder.is_dir() or not (half_made(folder) or holds_run(folder)):
        raise RunDirError(f"{folder}: is not a run directory; move it away, or choose another --out")
    if half_made(folder):
        return False
    finished = read_summary(folder).get("status") == "finished"
    if difference := _difference(run, folder, finished):
        raise RunDirError(
            f"{folder}: holds {'a finished' if finished else 'an unfinished'} run of another experiment "
            f"({difference}); choose another --out, or remove this folder to have it run again"
        )
    return finished


def set_aside(run: SweepRun, folder: Path) -> str:
    """Move away an unfinished run that cannot be resumed, so that it starts again. Returns a message, or ''."""
    if not folder.exists() or half_made(folder):
        return ""
    try:
        read_record(folder)
        return ""
    except UserError as error:
        why = str(error)
    refuse_driver(folder)
    aside = next_free(folder.parent, f"{folder.name}-set-aside")
    folder.rename(aside)
    return f"{run.label} cannot be resumed and starts again; the old run is now in {aside} ({why})"


def _difference(run: SweepRun, folder: Path, finished: bool) -> str:
    """The first setting in which the run in a folder differs from the sweep's; '' if there is none.

    For an unfinished run, only settings that results depend on count: the others may change when it is resumed.
    """
    try:
        found = load_saved(folder / "config.yaml")
        sources, wanted = run.experiment.sources, with_kept_paths(run.experiment, folder)
        changed = read_identity(folder).changed_parts(sources) if sources else []
    except UserError as error:
        return str(error) if finished else ""
    if changed:
        return f"{changed[0]} has changed since the run began"
    if finished:
        return "" if found == wanted else first_difference(resolved(found), resolved(wanted))
    if not (folder / "checkpoints" / "run.json").exists():
        return ""
    there, here = binding(found), binding(wanted)
    return "" if there == here else first_difference(there, here)
