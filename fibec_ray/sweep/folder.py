"""The sweep's folder: what is in it already, and what may not be touched; used by run.py.

OUT/sweep.yaml              the record that the analysis reads
OUT/VARIANT/seed-N/         a run directory
OUT/VARIANT/seed-N.yaml     its configuration, as it was asked for
OUT/VARIANT/seed-N.log      what it printed
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fibec_ray.config.difference import first_difference
from fibec_ray.config.load import load_experiment, read_yaml
from fibec_ray.errors import RunDirError, UserError
from fibec_ray.reruns.records import binding, read_record
from fibec_ray.run_dir import write_yaml
from fibec_ray.simulation import resolved
from fibec_ray.sweep.load import Sweep, SweepRun

RECORD = "sweep.yaml"
LOCK = ".lock"
RUN_FILES = {"data", "config.yaml", "summary.json"}
"""One of them at least is in the directory of a run that got anywhere."""


def folder_of(run: SweepRun, out: Path) -> Path:
    return out / run.variant.folder / f"seed-{run.seed}"


def config_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.yaml")


def log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Makes the folder and keeps other sweeps out, which would remove our runs. Raises RunDirError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise RunDirError(f"{out}: another sweep is running here; wait for it, or choose another --out") from error
    except OSError as error:
        raise RunDirError(
            f"{error.filename or out}: cannot be written ({error.strerror}); choose another --out"
        ) from error


def refuse_other_contents(out: Path, sweep: Sweep) -> None:
    """Only an empty folder or that of a sweep will do: unfinished runs in it may be removed."""
    record = out / RECORD
    if record == sweep.path.resolve():
        raise RunDirError(f"{record}: the sweep file itself stands where its record goes; choose another --out")
    if not record.exists() and any(path.name != LOCK for path in out.iterdir()):
        raise RunDirError(f"{out}: is not empty and holds no sweep; choose another --out, or remove it")
    if record.exists() and not isinstance(read_yaml(record).get("variants"), list):
        raise RunDirError(f"{record}: is not the record of a sweep; choose another --out, or move it away")


def write_record(sweep: Sweep, out: Path) -> None:
    """What the analysis reads: names, groups and folders of variants in the order of the table, and the reference."""
    variants = [
        {"name": v.name, "group": v.group, "folder": v.folder, "overrides": list(v.overrides)} for v in sweep.variants
    ]
    record = {"name": sweep.path.stem, "seeds": list(sweep.seeds), "reference": sweep.reference, "variants": variants}
    write_yaml(out / RECORD, record)


def is_finished(run: SweepRun, folder: Path) -> bool:
    """False: there is no run, or one that did not come to its end; that may be gone on with, or removed.

    Raises RunDirError for a finished run of another experiment, and for what is no run at all.
    """
    if not folder.exists():
        return False
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if names and not names & RUN_FILES:
        raise RunDirError(f"{folder}: holds something that is not a run; move it away, or choose another --out")
    if _status(folder) != "finished":
        return False
    difference = _difference(run, folder / "config.yaml")
    if difference:
        raise RunDirError(
            f"{folder}: holds a finished run of another experiment ({difference}); choose another --out, or remove "
            "this folder to have it run again"
        )
    return True


def can_go_on(run: SweepRun, folder: Path) -> bool:
    """Whether the unfinished run in a folder is one of this experiment that got to its first checkpoint's identity."""
    try:
        return binding(read_record(folder).experiment) == binding(run.experiment)
    except UserError:
        return False


def _status(folder: Path) -> str | None:
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary.get("status") if isinstance(summary, dict) else None


def _difference(run: SweepRun, config: Path) -> str:
    """The first setting in which the run in a folder differs from the one wanted; '' if there is none."""
    try:
        found = load_experiment(config)
    except UserError as error:
        return str(error)
    return "" if found == run.experiment else first_difference(resolved(found), resolved(run.experiment))
