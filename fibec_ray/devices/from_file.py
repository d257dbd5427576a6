"""Devices from a user's file: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal

from pydantic import Field

from fibec_ray.devices.base import Profile, WithEnergy
from fibec_ray.devices.numbers import Numbers
from fibec_ray.devices.parquet import Wanted, read_columns, refuse_unknown
from fibec_ray.errors import ConfigError

KEY = "path"
SPEEDS = ("gflops", "up_mbps", "down_mbps")
ENERGY = {"gflops_per_joule": Wanted("gflops_per_joule", above=0, optional=True)} | {
    name: Wanted(name, least=0, optional=True) for name in ("up_j_per_mb", "down_j_per_mb")
}


class FromFile(WithEnergy):
    """Devices from a Parquet file with one row each: columns `device`, `gflops`, `up_mbps` and `down_mbps`.

    Optional columns: `speed_class`, the group that reports list the device under, and `gflops_per_joule`, `up_j_per_mb`
    and `down_j_per_mb`, which replace the settings of the same name. The run keeps a copy of the file.
    """

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1, description="a Parquet file with the columns device, gflops, up_mbps and down_mbps")

    def profile(self, seed: int, device: int) -> Profile:
        return self._profiles[device]

    @property
    def files(self) -> dict[str, str]:
        return {KEY: self.path, **super().files}

    def unfit_for(self, num_devices: int) -> str | None:
        refuse_unknown(self.path, KEY, self._profiles, num_devices)
        missing = sorted(set(range(num_devices)) - self._profiles.keys())
        if missing:
            return (
                f"{KEY}: {self.path}: no row for device {missing[0]} ({len(missing)} of {num_devices} are missing); "
                f"add {'it' if len(missing) == 1 else 'them'}, or lower num_devices"
            )
        return super().unfit_for(num_devices)

    @cached_property
    def _profiles(self) -> Mapping[int, Profile]:
        wanted = (Wanted("device", whole=True), *(Wanted(name, above=0) for name in SPEEDS), *ENERGY.values())
        columns = read_columns(self.path, KEY, (*wanted, Wanted("speed_class", text=True, optional=True)))
        found: dict[int, Profile] = {}
        for row, device in enumerate(columns["device"]):
            if device in found:
                raise ConfigError(f"system.{KEY}: {self.path}: device {device} has two rows; remove one")
            values = {name: columns[name][row] for name in SPEEDS}
            values |= {name: columns[name][row] if name in columns else getattr(self, name) for name in ENERGY}
            group = columns["speed_class"][row] if "speed_class" in columns else None
            found[device] = Profile(Numbers(**values), speed_class=group)
        return found
