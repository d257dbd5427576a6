"""FedBuff: the server combines every K updates, whichever model they started from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from fibec_ray.parts.part import Need
from fibec_ray.schedules.arrivals import Arrivals
from fibec_ray.schedules.base import Schedule, Step, World
from fibec_ray.tensors import Tensors, scale


class Buffered(Schedule):
    """FedBuff (Nguyen et al., AISTATS 2022): cohort_size devices work at a time, and every K updates make a round.

    An update that started tau rounds earlier is scaled by (1 + tau)^-a before the aggregator gets it. With K =
    cohort_size and devices of equal speed this is `sync`.
    """

    kind: Literal["buffered"] = "buffered"
    buffer: int | None = Field(None, ge=1, description="K: updates that a round combines; null: cohort_size")
    exponent: float = Field(0.5, ge=0, le=10, description="a: how fast the weight of an update falls with its age")
    max_staleness: int | None = Field(
        None, ge=0, description="rounds after which an update no longer counts; null: all count"
    )

    needs_times: ClassVar[bool] = True
    lacks: ClassVar[tuple[Need, ...]] = ("fresh",)

    def unfit_for_cohorts(self, cohort_size: int, num_devices: int) -> str | None:
        if self.num_updates(cohort_size) > num_devices:
            return (
                f"buffer {self.buffer} is never full: a device has one update in it, and num_devices is {num_devices}; "
                "lower buffer"
            )
        return None

    def steps(self, world: World) -> Iterator[Step]:
        return Arrivals(world, self.num_updates(world.cohort_size), self.max_staleness).steps()

    def num_updates(self, cohort_size: int) -> int:
        return cohort_size if self.buffer is None else self.buffer

    def seen(self, delta: Tensors, received: Tensors, current: Tensors, staleness: int) -> Tensors:
        return scale(delta, (1 + staleness) ** -self.exponent) if staleness else delta
