"""Device states on disk, one file for each device and round that changed it; no state lives only in an actor.

A file `DEVICE/ROUND.safetensors` holds the state after that round (-1: after the initialisation phase). A device-round
starts from the newest version before its round, so running it again, elsewhere or later, starts from the same state.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fibec_ray.errors import RunDirError
from fibec_ray.types import DeviceState


class StateStore:
    def __init__(self, folder: Path):
        self._folder = folder

    def load(self, device: int, before: int) -> DeviceState:
        """The device's state at the start of round `before`; empty if it has never had one."""
        versions = [round_ for round_ in self._versions(device) if round_ < before]
        if not versions:
            return DeviceState()
        path = self._path(device, max(versions))
        try:
            return DeviceState.from_flat(load_file(path))
        except (SafetensorError, OSError) as error:
            raise RunDirError(f"{path}: the device's state cannot be read ({error})") from error

    def save(self, device: int, round_: int, state: DeviceState) -> None:
        """Writes the state after `round_` and drops versions that no re-run of `round_` can need."""
        tensors = {name: value.contiguous() for name, value in state.flat().items()}
        if not tensors:
            return
        path = self._path(device, round_)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part)
            os.replace(part, path)
        except (SafetensorError, OSError) as error:
            with suppress(OSError):
                part.unlink()
            raise RunDirError(f"{path}: the device's state cannot be written ({error})") from error
        for old in sorted(version for version in self._versions(device) if version < round_)[:-1]:
            self._path(device, old).unlink(missing_ok=True)

    def _path(self, device: int, round_: int) -> Path:
        return self._folder / f"{device:05d}" / f"{round_}.safetensors"

    def _versions(self, device: int) -> list[int]:
        return [
            int(path.stem) for path in (self._folder / f"{device:05d}").glob("*.safetensors") if path.stem[0] != "."
        ]
