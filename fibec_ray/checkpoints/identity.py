"""RUN/checkpoints/run.json: a run's id, settings, data and program versions. Written once, checked on resume."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import failing_plainly, half_made, refused
from fibec_ray.files.sealed import read_sealed, write_sealed
from fibec_ray.learning.prepare import Prepared
from fibec_ray.parts.own import Source, digest

FORMAT = 1
PACKAGES = ("fibec_ray", "torch", "transformers", "peft", "numpy", "safetensors")
"""Packages whose version may change results."""


class Identity(BaseModel, frozen=True, extra="forbid"):
    """What a run is: id, code, settings, data and versions. Stored when the run starts."""

    run_id: str
    git_commit: str
    """of the code; '' unless it is a checkout"""
    config: dict[str, Any]
    """the resolved experiment, as plain values"""
    data: str
    """digest of RUN/data"""
    parts: dict[str, str] = {}
    """file or module of the user's own parts -> digest; RUN/parts has copies of the files"""
    prepared: Prepared
    versions: dict[str, str]
    format: int = FORMAT

    def write(self, run_dir: Path) -> None:
        with refused(f"{_path(run_dir).parent}: cannot be made"):
            _path(run_dir).parent.mkdir(exist_ok=True)
        write_sealed(_path(run_dir), self)

    def refuse_other_data(self, run_dir: Path) -> None:
        """Raises RunDirError if RUN/data has changed since the run began."""
        if data_digest(run_dir) != self.data:
            raise RunDirError(
                f"{run_dir / 'data'}: is not the data set that the run began with; put it back, or start a new run"
            )

    def refuse_other_files(self, run_dir: Path) -> None:
        """Raises RunDirError if a file in RUN/parts has changed since the run began. Does not run the files."""
        for path in (run_dir / "parts" / name for name in self.parts if name.endswith(".py")):
            try:
                same = digest(path.read_bytes().decode(errors="replace")) == self.parts[path.name]
            except OSError as error:
                raise RunDirError(f"{path}: cannot be read ({error.strerror}); put back what it keeps") from error
            if not same:
                raise RunDirError(f"{path}: is not what the run began with; put it back, or start a new run")

    def changed_parts(self, sources: Mapping[str, Source]) -> list[str]:
        """Names of parts whose code has changed. sources: of an experiment with the same settings."""
        return [name for name, source in sources.items() if source.digest != self.parts.get(name)]

    def refuse_other_parts(self, sources: Mapping[str, Source], run_dir: Path) -> None:
        """Raises RunDirError if a part's code has changed since the run began."""
        for name in self.changed_parts(sources):
            kept = f" ({run_dir / 'parts' / name} is a copy)" if name.endswith(".py") else ""
            raise RunDirError(
                f"{run_dir}: {name} is not what this run began with; put that back{kept}, or start a new run in "
                "another --out"
            )

    def other_versions(self) -> str:
        """'torch 2.9 then, 2.10 now'; '' if no version has changed."""
        now = program_versions()
        names = [name for name in now if now[name] != self.versions.get(name)]
        return ", ".join(f"{name} {self.versions.get(name, 'none')} then, {now[name]} now" for name in names)


def identify(
    run_dir: Path, config: dict[str, Any], prepared: Prepared, git_commit: str, sources: Mapping[str, Source]
) -> Identity:
    """The identity of a new run whose data have been written."""
    return Identity(
        run_id=uuid.uuid4().hex,
        git_commit=git_commit,
        config=config,
        data=data_digest(run_dir),
        parts={name: source.digest for name, source in sources.items()},
        prepared=prepared,
        versions=program_versions(),
    )


def read_identity(run_dir: Path) -> Identity:
    """Read the identity of a run. Raises RunDirError for a folder that is not a run directory, or cannot be resumed."""
    path, config = _path(run_dir), run_dir / "config.yaml"
    with failing_plainly(run_dir):
        if not run_dir.is_dir():
            raise RunDirError(f"{run_dir}: no such run directory; give the --out of a run")
        if not path.is_file() and any(run_dir.iterdir()) and half_made(run_dir):
            raise RunDirError(
                f"{run_dir}: this run was stopped before it began, so there is nothing to resume; start it again: "
                f"fibec-ray run CONFIG --out {run_dir}"
            )
        if path.is_file() and not config.is_file():
            raise RunDirError(f"{config}: is missing; put it back ({path} has its settings, under `config`)")
        if not config.is_file():
            raise RunDirError(f"{run_dir}: is not a run directory (it has no config.yaml); give the --out of a run")
        if not path.is_file():
            raise RunDirError(f"{path}: is missing, so this run cannot be resumed; start a new one")
    return read_sealed(path, Identity, "the identity of a run")


def data_digest(run_dir: Path) -> str:
    """Digest of names and contents of all files in RUN/data, except hidden ones."""
    state, folder = hashlib.blake2b(digest_size=16), run_dir / "data"
    with refused(f"{folder}: cannot be read"):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            if name.startswith(".") or "/." in name:
                continue
            state.update(f"{name}\n".encode())
            with path.open("rb") as file:
                state.update(hashlib.file_digest(file, "blake2b").digest())
    return state.hexdigest()


def program_versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: _version(name) for name in PACKAGES}


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "run.json"
