"""Device states on disk, one file for each device and round that wrote one; no state lives only in an actor.

`DEVICE/ROUND.safetensors` holds the state that a device proposes after it started from that round's model (-1: the
initialisation phase).
Storing a state does not make it the device's: the fleet accepts it together with the device's update (see
`AcceptedStates`), and the next round's plan names the version and digest to start from. So a device-round that is
repeated, quarantined or dropped never changes what later rounds start from. Devices only add files; the driver alone
removes them (checkpointer.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fibec_ray.errors import RunDirError, round_name
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import Tensors, digest
from fibec_ray.types import DeviceState, StateRef, States


class StateStore:
    """Reads and writes device states in one folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    def load(self, device: int, ref: StateRef | None) -> DeviceState:
        """Read a device's state; None gives the empty one that every device begins with.

        Raises RunDirError if the file is missing, damaged, or holds another state than `ref` names.
        """
        return DeviceState() if ref is None else DeviceState.from_flat(self.read(device, ref))

    def save(self, device: int, round_: int, state: DeviceState) -> str:
        """Write the state after `round_`; returns its digest. A state without tensors writes nothing and gives ''.

        Raises RunDirError.
        """
        tensors = {name: value.contiguous() for name, value in state.flat().items()}
        if not tensors:
            return ""
        path, found = self.path(device, round_), digest(tensors)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata={"digest": found})
            os.replace(part, path)
        except (SafetensorError, OSError) as error:
            with suppress(OSError):
                part.unlink()
            raise RunDirError(
                f"{path}: the device's state cannot be written ({error}); free some disk space, then resume the run"
            ) from error
        return found

    def prune(self, devices: Collection[int], needed: Collection[tuple[int, int]], before: int) -> None:
        """Delete versions older than round `before`, except those in `needed`, pairs of device and version."""
        for device in devices:
            for version in self.versions(device):
                if version < before and (device, version) not in needed:
                    self.path(device, version).unlink(missing_ok=True)

    def rewind(self, first: int) -> None:
        """Delete what round `first` and later ones wrote, whole or in part; the resumed run repeats them."""
        for part in self._folder.glob("*/.*.part"):
            part.unlink(missing_ok=True)
        for folder in self._folder.glob("[0-9]*"):
            if folder.name.isdecimal():
                for version in self.versions(int(folder.name)):
                    if version >= first:
                        self.path(int(folder.name), version).unlink(missing_ok=True)

    def versions(self, device: int) -> list[int]:
        """Rounds that wrote a state. Files with other names are not ours and are ignored."""
        names = (path.stem for path in self._home(device).glob("*.safetensors"))
        return sorted(int(name) for name in names if re.fullmatch("-?[0-9]+", name))

    def path(self, device: int, version: int) -> Path:
        """The file of a device's state."""
        return self._home(device) / f"{version}.safetensors"

    def _home(self, device: int) -> Path:
        return self._folder / f"{device:05d}"

    def read(self, device: int, ref: StateRef) -> Tensors:
        """The tensors of a state. Raises RunDirError unless the file holds exactly the state that `ref` names."""
        path = self.path(device, ref.version)
        if not path.is_file():
            raise RunDirError(f"{path}: the device's state is missing; put the file back, or start a new run")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
                recorded = (file.metadata() or {}).get("digest", "")
        except (SafetensorError, OSError) as error:
            raise RunDirError(f"{path}: the device's state cannot be read ({error})") from error
        if digest(tensors) != (ref.digest or recorded):
            what = "is damaged: its digest is not the one it was written with"
            if ref.digest and digest(tensors) == recorded:
                what = f"is another state than the one that the run accepted in {round_name(ref.version)}"
            raise RunDirError(f"{path}: the device's state {what}")
        return tensors


class AcceptedStates:
    """The accepted state of each device, initially none.

    Call `accept` after each step of the server, and `reset` to return to an earlier point.
    """

    def __init__(self) -> None:
        self._now: dict[int, StateRef] = {}

    def accept(self, reports: Iterable[DeviceReport]) -> None:
        """Advance the devices whose update counted. Quarantined devices keep the state they had."""
        for report in reports:
            if report.quarantined is not None:
                continue
            if report.state_digest:
                self._now[report.device] = StateRef(report.round - (report.staleness or 0), report.state_digest)
            else:
                self._now.pop(report.device, None)

    def reset(self, states: States) -> None:
        """Return to these states."""
        self._now = dict(states)

    def of(self, devices: Iterable[int]) -> dict[int, StateRef]:
        """The states of some devices; devices without a state are left out."""
        return {device: self._now[device] for device in devices if device in self._now}

    @property
    def all(self) -> Mapping[int, StateRef]:
        """A copy of all states, which later rounds do not change."""
        return dict(self._now)
