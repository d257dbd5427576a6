"""Device states on disk, one file for each device and round that changed it; no state lives only in an actor.

A file `DEVICE/ROUND.safetensors` holds the state after that round (-1: after the initialisation phase) and its digest.
A device-round starts from the newest version before its round, so running it again, elsewhere or later, starts from the
same state. Devices only ever add versions: the driver alone takes them away (keeper.py), because it alone knows which
rounds a resumed run may have to start from.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fibec_ray.errors import RunDirError
from fibec_ray.tensors import Tensors, digest
from fibec_ray.types import DeviceState


class StateStore:
    def __init__(self, folder: Path):
        self._folder = folder

    def load(self, device: int, before: int) -> DeviceState:
        """The device's state at the start of round `before`; empty if it has never had one. Raises RunDirError."""
        version = self.newest(device, before)
        return DeviceState() if version is None else DeviceState.from_flat(_read(self.path(device, version)))

    def save(self, device: int, round_: int, state: DeviceState) -> None:
        """Writes the state after `round_`; a state without tensors writes nothing. Raises RunDirError."""
        tensors = {name: value.contiguous() for name, value in state.flat().items()}
        if not tensors:
            return
        path = self.path(device, round_)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata={"digest": digest(tensors)})
            os.replace(part, path)
        except (SafetensorError, OSError) as error:
            with suppress(OSError):
                part.unlink()
            raise RunDirError(f"{path}: the device's state cannot be written ({error})") from error

    def digest(self, device: int, round_: int) -> str:
        """Of the state after `round_`, from the head of its file; '' if the device wrote none."""
        path = self.path(device, round_)
        return _recorded(path) if path.exists() else ""

    def newest(self, device: int, before: int) -> int | None:
        """The version that round `before` starts from."""
        return max((round_ for round_ in self.versions(device) if round_ < before), default=None)

    def prune(self, devices: Collection[int], starts: Collection[int]) -> None:
        """Drops versions that nothing can need any more.

        starts: rounds that the run may be resumed at; each needs the newest version before it. The two newest ones of
        all stay in any case: the state now, and the one that a retry of the current round starts from.
        """
        for device in devices:
            versions = sorted(self.versions(device))
            needed = {*versions[-2:], *(self.newest(device, start) for start in starts)}
            for old in versions:
                if old not in needed:
                    self.path(device, old).unlink(missing_ok=True)

    def rewind(self, first: int) -> None:
        """Forgets what round `first` and later ones wrote, whole or in part: the resumed run does them again."""
        for part in self._folder.glob("*/.*.part"):
            part.unlink(missing_ok=True)
        for path in self._folder.glob("*/*.safetensors"):
            if path.stem[0] != "." and int(path.stem) >= first:
                path.unlink(missing_ok=True)

    def versions(self, device: int) -> list[int]:
        return [
            int(path.stem) for path in (self._folder / f"{device:05d}").glob("*.safetensors") if path.stem[0] != "."
        ]

    def path(self, device: int, round_: int) -> Path:
        return self._folder / f"{device:05d}" / f"{round_}.safetensors"


def _read(path: Path) -> Tensors:
    """All tensors of a file, if they are those that were written."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            expected = (file.metadata() or {}).get("digest")
    except (SafetensorError, OSError) as error:
        raise RunDirError(f"{path}: the device's state cannot be read ({error})") from error
    if expected is not None and digest(tensors) != expected:
        raise RunDirError(f"{path}: the device's state is damaged: its digest is not the one it was written with")
    return tensors


def _recorded(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("digest", ""))
    except (SafetensorError, OSError) as error:
        raise RunDirError(f"{path}: the device's state cannot be read ({error})") from error
