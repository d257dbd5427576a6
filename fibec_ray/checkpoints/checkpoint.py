"""Checkpoints on disk: everything needed to go on after a round as if nothing had happened.

RUN/checkpoints/rounds/000005/   before round 5: server.safetensors and manifest.json, renamed into place together
RUN/checkpoints/devices/         states of devices (learning/store.py); the manifest names version and digest of each
Safetensors and JSON alone are read, and both only if they are, bit for bit, what was written.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import flush, refused, replace_folder
from fibec_ray.files.sealed import file_digest, read_sealed, write_sealed
from fibec_ray.learning.run_totals import RunTotalsState
from fibec_ray.tensors import Tensors
from fibec_ray.types import StateRef

FORMAT = 1
SERVER, MANIFEST = "server.safetensors", "manifest.json"


class CheckpointConfig(BaseModel, frozen=True, extra="forbid"):
    """What a run keeps to be resumed, verified and replayed from."""

    every: int = Field(1, ge=1, description="rounds between checkpoints; a resumed run does as many again, at most")
    keep: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        2,
        description="newest checkpoints that stay; all: every one, with the device states that go with it, so that any "
        "round can be verified and replayed",
    )

    def kept(self, rounds: list[int]) -> list[int]:
        """Which of the checkpoints stay. rounds: ascending."""
        return rounds if self.keep == "all" else rounds[-self.keep :]


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """All of a checkpoint but the server's tensors."""

    next_round: int = Field(ge=0)
    """the round that the run goes on with; those before it are in the round log"""
    run_id: str
    """of the run, whose settings and data are in run.json"""
    server: str
    """digest of the server's file"""
    lanes: int = Field(ge=1)
    """devices that computed side by side, as the settings had it or as was found at the start"""
    base: str = ""
    """fingerprint of the base weights; '' if there are none, or it was not kept yet"""
    totals: RunTotalsState
    devices: dict[int, int]
    """version of each device's accepted state, which names its file; a device without a state is left out"""
    digests: dict[int, str] = {}
    """of these states; empty in old checkpoints"""
    log: dict[str, str] = {}
    """by table of the round log: digest of its newest part, which names the one before it; empty in old checkpoints"""
    format: int = FORMAT

    @property
    def states(self) -> dict[int, StateRef]:
        """The accepted state of each device that has one."""
        return {device: StateRef(version, self.digests.get(device, "")) for device, version in self.devices.items()}


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    manifest: Manifest

    @property
    def server(self) -> Path:
        """The server's tensors, as `read_state` has them."""
        return self.folder / SERVER

    def refuse_other_base(self, fingerprint: str) -> None:
        """Raises RunDirError if the run's frozen weights are not the ones that there are now."""
        if self.manifest.base and fingerprint != self.manifest.base:
            raise RunDirError(
                f"{self.folder}: the base weights are not those that the run began with (fingerprint {fingerprint}, "
                f"then {self.manifest.base}); put back the backbone's files, or the versions of torch and transformers "
                "that drew them, or start a new run"
            )


def folder_of(run_dir: Path, next_round: int) -> Path:
    return _home(run_dir) / f"{next_round:06d}"


def rounds_kept(run_dir: Path) -> list[int]:
    """`next_round` of every checkpoint that is there, damaged or not; ascending. Without a manifest it is none."""
    manifests = _home(run_dir).glob(f"[0-9]*/{MANIFEST}")
    return sorted(int(path.parent.name) for path in manifests if re.fullmatch("[0-9]+", path.parent.name))


def new_draft(run_dir: Path, next_round: int) -> Path:
    """An empty folder for a checkpoint that is being written."""
    draft = _home(run_dir) / f".{next_round:06d}.part"
    with refused(f"{draft}: cannot be made"):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    return draft


def commit(run_dir: Path, draft: Path, manifest: Manifest) -> None:
    """Makes the draft, which holds the server's file, the checkpoint: at once, or not at all."""
    write_sealed(draft / MANIFEST, manifest)
    with refused(f"{draft}: the checkpoint cannot be written"):
        replace_folder(draft, folder_of(run_dir, manifest.next_round))
        flush(_home(run_dir))


def load(run_dir: Path, next_round: int) -> Checkpoint:
    """The checkpoint before a round, if all of it is what was written. Raises RunDirError."""
    folder = folder_of(run_dir, next_round)
    manifest = read_sealed(folder / MANIFEST, Manifest, "a checkpoint's manifest")
    if manifest.next_round != next_round:
        raise RunDirError(f"{folder}: is of round {manifest.next_round}; it has been renamed")
    with refused(f"{folder / SERVER}: cannot be read"):
        if file_digest(folder / SERVER) != manifest.server:
            raise RunDirError(f"{folder / SERVER}: is damaged: its digest is not the one it was written with")
    return Checkpoint(folder, manifest)


def remove(run_dir: Path, next_round: int) -> None:
    """The manifest goes first, so that what is left of an interrupted removal is no checkpoint."""
    folder = folder_of(run_dir, next_round)
    for name in (MANIFEST, SERVER):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()  # if nothing else is in it: other files there are not ours


def rewind(run_dir: Path, first: int) -> None:
    """Forgets the checkpoints before rounds later than `first`, and what was half written."""
    for later in rounds_kept(run_dir):
        if later > first:
            remove(run_dir, later)
    for draft in _home(run_dir).glob(".*.part"):
        shutil.rmtree(draft, ignore_errors=True)


def write_state(path: Path, state: Tensors) -> str:
    """Writes the server's tensors, and their order, which safetensors would forget; returns the file's digest."""
    try:
        save_file(state, path, metadata={"order": json.dumps(list(state))})
        flush(path)
        return file_digest(path)
    except (SafetensorError, OSError) as error:
        raise RunDirError(f"{path}: the server's state cannot be written ({error}); is the disk full?") from error


def read_state(path: Path) -> Tensors:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in json.loads(file.metadata()["order"])}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunDirError(f"{path}: the server's state cannot be read ({error})") from error


def _home(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "rounds"
