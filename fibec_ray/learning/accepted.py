"""The stored state of each device: the newest one whose update the server accepted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fibec_ray.reports import DeviceReport
from fibec_ray.types import StateRef, States


class AcceptedStates:
    """Starts empty; `accept` after each step that the server took, `reset` to go back to an earlier point."""

    def __init__(self) -> None:
        self._now: dict[int, StateRef] = {}

    def accept(self, reports: Iterable[DeviceReport]) -> None:
        """Advance the devices whose update counted. Quarantined devices keep the state they had."""
        for report in reports:
            if report.quarantined is not None:
                continue
            if report.state_digest:
                self._now[report.device] = StateRef(report.round, report.state_digest)
            else:
                self._now.pop(report.device, None)

    def reset(self, states: States) -> None:
        self._now = dict(states)

    def of(self, devices: Iterable[int]) -> dict[int, StateRef]:
        """The states of some devices; those that have none are left out."""
        return {device: self._now[device] for device in devices if device in self._now}

    @property
    def all(self) -> Mapping[int, StateRef]:
        """A copy that later rounds do not change."""
        return dict(self._now)
