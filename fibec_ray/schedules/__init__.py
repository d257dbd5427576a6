"""When the server combines updates. To add a schedule: one file, and one line here."""

from fibec_ray.schedules.base import Schedule

SCHEDULES: dict[str, type[Schedule]] = {
    "sync": Schedule,
}
"""The schedules by kind. The first is the default."""
