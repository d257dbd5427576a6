"""Every schedule beside `sync`, with settings under which some work is late. For the shared suites."""

from __future__ import annotations

from typing import Any

from conftest import make_digits

from fibec_ray.schedules import SCHEDULES

LATE: dict[str, dict[str, Any]] = {
    "deadline": {"over_commit": 1.5, "late": "next_round"},
    "buffered": {"buffer": 2},
}
SCHEDULED = [kind for kind in SCHEDULES if kind != "sync"]


def settings_of(kind: str, method: str = "fibecfed", **changes: Any) -> dict[str, Any]:
    """Devices with a state of their own and very different speeds."""
    schedule = {"kind": kind, **LATE.get(kind, {})}
    settings = {"rounds": 7, "cohort_size": 3, "schedule": schedule, "system": {"spread": 1.0}}
    return make_digits(method, **settings | changes)
