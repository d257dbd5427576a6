"""How much of a cohort a round may lose, and what happens to bad updates; the same for every fleet."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from fibec_ray.errors import DeviceError, FleetError
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.types import RoundPlan


def check_quorum(config: FleetConfig, plan: RoundPlan, lost: Collection[int], bad: Mapping[int, str]) -> None:
    """lost: devices whose update never came. bad: why, of those whose update was refused.

    Raises DeviceError if the bad ones are the reason why the round cannot count, FleetError if the lost ones are.
    """
    needed = math.ceil(config.quorum * len(plan.cohort) - 1e-9)
    sound = len(plan.cohort) - len(lost) - len(bad)
    if sound >= needed and (config.on_bad_update == "quarantine" or not bad):
        return
    count = f"{sound} of {len(plan.cohort)} devices sent a sound update, fleet.quorum asks for {needed}"
    if bad:
        device = min(bad, key=plan.cohort.index)
        more = f" ({count})" if sound < needed else " (fleet.on_bad_update=quarantine goes on without it)"
        raise DeviceError(device, plan.round, "train", f"{bad[device]}{more}")
    raise FleetError(f"round {plan.round}: {count}; see the Ray logs for why actors die, or lower fleet.quorum")
