"""The settings of an experiment that devices and the server need; sent to actors as JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, model_validator

from fibec_ray.answers import Answers
from fibec_ray.devices import AnySystem
from fibec_ray.effects import OnlyWith, refuse_idle
from fibec_ray.method import Method
from fibec_ray.models.kinds import OneBackbone
from fibec_ray.parts.own import Source
from fibec_ray.parts.part import build, sources_of
from fibec_ray.samplers import SAMPLERS
from fibec_ray.samplers.base import Sampler
from fibec_ray.schedules import SCHEDULES
from fibec_ray.schedules.base import Schedule

AnySampler = Annotated[SerializeAsAny[Sampler], BeforeValidator(lambda value: build(SAMPLERS, value))]
AnySchedule = Annotated[SerializeAsAny[Schedule], BeforeValidator(lambda value: build(SCHEDULES, value))]


class LocalTraining(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How a device trains in a round. The optimiser's state starts fresh in each round."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="starts afresh in each round")
    learning_rate: float = Field(3e-3, gt=0, allow_inf_nan=False, description="step size of the first round")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="learning rate over rounds: linear and cosine fall from learning_rate to 0"
    )
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False, description="of the optimiser, decoupled in adamw")
    momentum: Annotated[float, OnlyWith("optimizer", "sgd")] = Field(0.0, ge=0, lt=1, description="momentum of sgd")
    batch_size: int = Field(8, ge=1, description="samples per step")
    epochs: int = Field(1, ge=1, description="passes over the visible batches per round")
    max_steps: int | None = Field(
        None,
        ge=1,
        description="most steps per round, or per part of it if the solver has several; null: no limit",
    )
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null: no clipping")

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> LocalTraining:
        refuse_idle(self)
        return self


class ServerConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How the server treats updates, for any method."""

    max_update_norm: float | None = Field(
        None,
        gt=0,
        description="largest L2 norm of an update over all its tensors; a larger one counts as bad (see "
        "fleet.on_bad_update). null: the built-in limit, 10,000 times the norm of the tensors that it changes or a "
        "root mean square of 10,000 per entry, whichever is more. The built-in limit always applies",
    )


class Job(BaseModel, frozen=True, extra="forbid"):
    """The part of an experiment that learning depends on."""

    seed: int
    rounds: int
    num_devices: int
    cohort_size: int
    method: Method
    backbone: OneBackbone
    local: LocalTraining
    system: AnySystem
    answers: Answers
    """what a model gives for a sample"""
    eval_batch_size: int
    max_length: int
    """most tokens of a sample, `data.max_length`"""
    server: ServerConfig = ServerConfig()
    sampler: AnySampler = Sampler()
    schedule: AnySchedule = Schedule()
    pooled_cohort: tuple[int, int] | None = None
    """with pooled data (one device has all): the federation's cohort_size and num_devices; None: not pooled"""

    @property
    def is_timed(self) -> bool:
        """True if plans depend on when devices finish. Times are then predicted, else computed from the work done."""
        return self.schedule.needs_times or not self.system.availability.limits_nothing

    @property
    def needs_foresight(self) -> bool:
        """True if plans depend on predicted work, or contain the cost of work that is dropped."""
        return self.is_timed or self.system.dropout > 0

    @property
    def sources(self) -> dict[str, Source]:
        """Files and modules of the user's own parts, by name."""
        return sources_of(*self.method.parts.values(), self.sampler, self.schedule)
