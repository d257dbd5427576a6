"""Checkpoints on disk: everything needed to continue a run after a round, with the same results.

RUN/checkpoints/rounds/000005/   before round 5: server.safetensors and manifest.json, renamed into place together
RUN/checkpoints/devices/         states of devices (learning/store.py); the manifest names version and digest of each
Only safetensors and JSON are read, and only if their digests match.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import flush, refused, replace_folder
from fibec_ray.files.sealed import file_digest, read_sealed, write_sealed
from fibec_ray.learning.run_totals import RunTotalsState
from fibec_ray.tensors import Tensors
from fibec_ray.types import Products, StateRef

FORMAT = 1
SERVER, MANIFEST = "server.safetensors", "manifest.json"


class CheckpointConfig(BaseModel, frozen=True, extra="forbid"):
    """Which checkpoints a run keeps. `resume`, `verify` and `replay` start from them."""

    every: int = Field(1, ge=1, description="rounds between checkpoints; a resumed run repeats at most this many")
    keep: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        2,
        description="newest checkpoints to keep; all: every one with its device states, so that any round can be "
        "verified and replayed",
    )

    def kept(self, rounds: list[int]) -> list[int]:
        """The checkpoints to keep. rounds: ascending."""
        return rounds if self.keep == "all" else rounds[-self.keep :]


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """A checkpoint without the server's tensors."""

    next_round: int = Field(ge=0)
    """the round that the run continues with; earlier ones are in the round log"""
    run_id: str
    """of the run; run.json has its settings and data"""
    server: str
    """digest of server.safetensors"""
    lanes: int = Field(ge=1)
    """devices that compute side by side: set, or found by a trial at the start"""
    products: Products | None = None
    """what multiplies frozen layers on CPUs; None if nothing does, or in old checkpoints"""
    base: str = ""
    """fingerprint of the base weights; '' if there are none, or in old checkpoints"""
    totals: RunTotalsState = Field(validation_alias=AliasChoices("totals", "tally"))
    """called `tally` by earlier programs"""
    devices: dict[int, int]
    """version of each device's accepted state, which is in its file's name; devices without a state are left out"""
    digests: dict[int, str] = {}
    """digests of these states; empty in old checkpoints"""
    log: dict[str, str] = {}
    """table of the round log -> digest of its newest part, which links to the one before; empty in old checkpoints"""
    format: int = FORMAT

    @property
    def states(self) -> dict[int, StateRef]:
        """The accepted states, by device."""
        return {device: StateRef(version, self.digests.get(device, "")) for device, version in self.devices.items()}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def server(self) -> Path:
        """Path of the server's tensors, for `read_state`."""
        return self.folder / SERVER

    def refuse_other_base(self, fingerprint: str) -> None:
        """Raises RunDirError if the base weights have changed since the run began."""
        if self.manifest.base and fingerprint != self.manifest.base:
            raise RunDirError(
                f"{self.folder}: the base weights are not those that the run began with (fingerprint {fingerprint}, "
                f"then {self.manifest.base}); put back the backbone's files, or the versions of fibec_ray, torch and "
                "transformers that drew them, or start a new run"
            )


def folder_of(run_dir: Path, next_round: int) -> Path:
    """The folder of the checkpoint that a round starts from."""
    return _home(run_dir) / f"{next_round:06d}"


def rounds_kept(run_dir: Path) -> list[int]:
    """`next_round` of every checkpoint with a manifest, damaged or not; ascending."""
    manifests = _home(run_dir).glob(f"[0-9]*/{MANIFEST}")
    return sorted(int(path.parent.name) for path in manifests if re.fullmatch("[0-9]+", path.parent.name))


def new_draft(run_dir: Path, next_round: int) -> Path:
    """Make an empty folder for a checkpoint that is being written."""
    draft = _home(run_dir) / f".{next_round:06d}.part"
    with refused(f"{draft}: cannot be made"):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    return draft


def commit(run_dir: Path, draft: Path, manifest: Manifest) -> None:
    """Turn the draft, which holds the server's file, into the checkpoint, in one step."""
    write_sealed(draft / MANIFEST, manifest)
    with refused(f"{draft}: the checkpoint cannot be written"):
        replace_folder(draft, folder_of(run_dir, manifest.next_round))
        flush(_home(run_dir))


def load(run_dir: Path, next_round: int) -> Checkpoint:
    """Load the checkpoint before a round. Raises RunDirError if any of it has changed."""
    folder = folder_of(run_dir, next_round)
    manifest = read_sealed(folder / MANIFEST, Manifest, "a checkpoint's manifest")
    if manifest.next_round != next_round:
        raise RunDirError(f"{folder}: belongs to round {manifest.next_round}; it has been renamed")
    with refused(f"{folder / SERVER}: cannot be read"):
        if file_digest(folder / SERVER) != manifest.server:
            raise RunDirError(f"{folder / SERVER}: is damaged: its digest has changed since it was written")
    return Checkpoint(folder, manifest)


def remove(run_dir: Path, next_round: int) -> None:
    """Remove a checkpoint. The manifest goes first, so an interrupted removal leaves no checkpoint."""
    folder = folder_of(run_dir, next_round)
    for name in (MANIFEST, SERVER):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()  # only if it is empty: other files there are not ours


def rewind(run_dir: Path, first: int) -> None:
    """Remove checkpoints of rounds later than `first`, and unfinished ones."""
    for later in rounds_kept(run_dir):
        if later > first:
            remove(run_dir, later)
    for draft in _home(run_dir).glob(".*.part"):
        shutil.rmtree(draft, ignore_errors=True)


def write_state(path: Path, state: Tensors) -> str:
    """Write the server's tensors with their order, which safetensors does not keep; returns the file's digest."""
    try:
        save_file(state, path, metadata={"order": json.dumps(list(state))})
        flush(path)
        return file_digest(path)
    except (SafetensorError, OSError) as error:
        raise RunDirError(f"{path}: the server's state cannot be written ({error}); is the disk full?") from error


def read_state(path: Path) -> Tensors:
    """Read the server's state. Raises RunDirError if the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {_name_now(name): file.get_tensor(name) for name in json.loads(file.metadata()["order"])}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunDirError(f"{path}: the server's state cannot be read ({error})") from error


def _name_now(name: str) -> str:
    """The name of a tensor today; runs of earlier programs call `control` tensors `hint`."""
    return f"control/{name.removeprefix('hint/')}" if name.startswith("hint/") else name


def _home(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "rounds"
