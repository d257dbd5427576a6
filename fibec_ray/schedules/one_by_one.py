"""FedAsync: the server mixes each update into its model as it arrives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fibec_ray.effects import OnlyWith, refuse_idle
from fibec_ray.parts.part import Need
from fibec_ray.schedules.arrivals import Arrivals
from fibec_ray.schedules.base import Schedule, Step, World
from fibec_ray.tensors import Tensors, scale, select, subtract


class Async(Schedule):
    """FedAsync (Xie et al., 2019): w <- (1 - m) w + m w_k for each update, with m = mixing x s(tau).

    w_k is the model that device k has trained, and tau the number of rounds since it started. Every update is a round
    of its own, so a run needs cohort_size times as many rounds as with `sync` for the same number of device-rounds.
    cohort_size devices work at a time.

    s: `constant`, 1; `polynomial`, (1 + tau)^-a; `hinge`, 1 up to tau = b and then 1 / (a (tau - b) + 1).
    """

    kind: Literal["async"] = "async"
    mixing: float = Field(0.6, gt=0, le=1, description="weight of an update that started from the newest model")
    staleness: Literal["constant", "polynomial", "hinge"] = Field(
        "polynomial", description="s: how the weight falls with the age of an update"
    )
    a: Annotated[float, OnlyWith("staleness", "polynomial", "hinge")] = Field(
        0.5, gt=0, le=100, description="how fast it falls; Xie et al. use 0.5 for polynomial and 10 for hinge"
    )
    b: Annotated[int, OnlyWith("staleness", "hinge")] = Field(4, ge=0, description="the largest tau with full weight")
    max_staleness: int | None = Field(
        None, ge=0, description="rounds after which an update no longer counts; null: all count"
    )

    needs_times: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = ("whole", "received")
    lacks: ClassVar[tuple[Need, ...]] = ("fresh",)

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Async:
        refuse_idle(self)
        return self

    def steps(self, world: World) -> Iterator[Step]:
        return Arrivals(world, 1, self.max_staleness).steps()

    def num_updates(self, cohort_size: int) -> int:
        return 1

    def weight(self, staleness: int) -> float:
        """m of an update of this age."""
        if self.staleness == "polynomial":
            return self.mixing * (1 + staleness) ** -self.a
        if self.staleness == "hinge" and staleness > self.b:
            return self.mixing / (self.a * (staleness - self.b) + 1)
        return self.mixing

    def seen(self, delta: Tensors, received: Tensors, current: Tensors, staleness: int) -> Tensors:
        """m (w_k - w), so that adding it to w gives (1 - m) w + m w_k."""
        step = subtract(delta, subtract(select(current, delta), received)) if staleness else delta
        return scale(step, self.weight(staleness))
