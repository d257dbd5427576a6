"""When the server combines updates. To add a schedule: one file, and one line here."""

from fibec_ray.schedules.base import Schedule
from fibec_ray.schedules.buffered import Buffered
from fibec_ray.schedules.deadline import Deadline
from fibec_ray.schedules.one_by_one import Async

SCHEDULES: dict[str, type[Schedule]] = {
    "sync": Schedule,
    "deadline": Deadline,
    "buffered": Buffered,
    "async": Async,
}
"""The schedules by kind. The first is the default."""
