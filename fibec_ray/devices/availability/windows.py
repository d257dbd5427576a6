"""Availability from a user's file of windows."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

from pydantic import Field

from fibec_ray.devices.availability.base import Availability
from fibec_ray.devices.parquet import Wanted, read_columns, refuse_unknown
from fibec_ray.errors import ConfigError

KEY = "availability.path"


class Windows(Availability):
    """Devices can be drawn inside the windows of a Parquet file: columns `device`, `start_s` and `end_s`.

    A window holds start_s <= t < end_s, in seconds of virtual time. A device may have several; one without any can
    never be drawn.
    """

    kind: Literal["windows"] = "windows"
    path: str = Field(min_length=1, description="a Parquet file with the columns device, start_s and end_s")
    repeat_s: float | None = Field(
        None, gt=0, description="the windows repeat after this many seconds, 86400 is daily; null: they do not"
    )

    def available(self, seed: int, device: int, time_s: float) -> bool:
        return self.available_from(seed, device, time_s) == time_s

    def available_from(self, seed: int, device: int, time_s: float) -> float:
        windows = self._windows.get(device, ())
        if not windows:
            return math.inf
        if self.repeat_s is None:
            return _earliest(windows, time_s)
        begun = math.floor(time_s / self.repeat_s) * self.repeat_s
        found = _earliest(windows, time_s - begun)
        if found == time_s - begun:
            return time_s
        return begun + (found if math.isfinite(found) else self.repeat_s + windows[0][0])

    @property
    def files(self) -> dict[str, str]:
        return {KEY: self.path}

    def unfit_for(self, num_devices: int) -> str | None:
        refuse_unknown(self.path, KEY, self._windows, num_devices)
        return None

    @cached_property
    def _windows(self) -> Mapping[int, Sequence[tuple[float, float]]]:
        """The windows of each device, in order, without overlaps."""
        wanted = (Wanted("device", whole=True), Wanted("start_s", least=0.0), Wanted("end_s", least=0.0))
        columns = read_columns(self.path, KEY, wanted)
        found: dict[int, list[tuple[float, float]]] = {}
        for row, (device, start, end) in enumerate(zip(*columns.values(), strict=True)):
            if not start < end:
                raise ConfigError(
                    f"system.{KEY}: {self.path}: row {row} starts at {start:g} s and ends at {end:g} s; "
                    "make it end later"
                )
            if self.repeat_s is not None and end > self.repeat_s:
                raise ConfigError(
                    f"system.{KEY}: {self.path}: row {row} ends at {end:g} s, after repeat_s {self.repeat_s:g}; raise "
                    "repeat_s, or split the window"
                )
            found.setdefault(device, []).append((start, end))
        return {device: _merged(sorted(windows)) for device, windows in found.items()}


def _merged(windows: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged = [windows[0]]
    for start, end in windows[1:]:
        if start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def _earliest(windows: Sequence[tuple[float, float]], time_s: float) -> float:
    """The earliest time at or after `time_s` inside a window; inf if there is none."""
    at = bisect_right(windows, (time_s, math.inf)) - 1
    if at >= 0 and time_s < windows[at][1]:
        return time_s
    return windows[at + 1][0] if at + 1 < len(windows) else math.inf
