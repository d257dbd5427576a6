"""Copy the user's files about simulated devices into a run, so that it can be resumed after they have changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fibec_ray.config.experiment import Experiment
from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import failing_plainly

FOLDER = "system"
"""Folder of these copies in a run directory."""


def with_device_files(experiment: Experiment, folder: Path) -> Experiment:
    """Copy the files that `system` reads into a run directory. Returns the experiment with the paths of the copies.

    Raises RunDirError if a file cannot be copied.
    """
    if not experiment.system.files:
        return experiment
    settings = experiment.system.model_dump()
    with failing_plainly(folder):
        (folder / FOLDER).mkdir()
        for key, path in experiment.system.files.items():
            section, name = _at(settings, key)
            section[name] = str(kept(folder, key))
            shutil.copyfile(Path(path).expanduser(), section[name])
    return experiment.model_copy(update={"system": type(experiment.system).model_validate(settings)})


def with_kept_paths(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with the paths of a run's own copies.

    Raises RunDirError if a file has changed since the run began. If the run has no such copy, the experiment
    is returned as it is.
    """
    settings = experiment.system.model_dump()
    for key, path in experiment.system.files.items():
        section, name = _at(settings, key)
        copy, file = kept(folder, key), Path(path).expanduser()
        if not copy.is_file():
            return experiment
        if file.read_bytes() != copy.read_bytes():
            raise RunDirError(
                f"system.{key}: {path} differs from {copy}, the copy from the start of the run; put the old file "
                "back, or start a new run"
            )
        section[name] = str(copy)
    return experiment.model_copy(update={"system": type(experiment.system).model_validate(settings)})


def kept(folder: Path, key: str) -> Path:
    """Where a run keeps the file of a setting, such as availability.path."""
    return folder.absolute() / FOLDER / f"{key}.parquet"


def with_kept_files(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings of a run with the paths of its own copies, even if its folder has moved."""
    found = raw.get("system")
    if not isinstance(found, dict):
        return raw
    system = {**found, "availability": dict(found["availability"])} if _nested(found) else dict(found)
    for key in ("path", "availability.path"):
        section, name = _at(system, key)
        if isinstance(section, dict) and Path(str(section.get(name))).parts[-2:] == kept(folder, key).parts[-2:]:
            section[name] = str(kept(folder, key))
    return {**raw, "system": system}


def _nested(system: dict[str, Any]) -> bool:
    return isinstance(system.get("availability"), dict)


def _at(settings: dict[str, Any], key: str) -> tuple[Any, str]:
    """The section of a dotted key, and the name in it."""
    *outer, name = key.split(".")
    section: Any = settings
    for each in outer:
        section = section.get(each) if isinstance(section, dict) else None
    return section, name
