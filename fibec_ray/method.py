"""A method is six parts; the engine knows nothing else about it. FedAvg on LoRA is the empty composition."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from fibec_ray.parts.aggregator import AGGREGATORS
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.feddyn import FedDyn
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.curriculum import CURRICULA
from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.mask import MASKS
from fibec_ray.parts.mask.base import Mask
from fibec_ray.parts.objective import OBJECTIVES
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.objective.feddyn import DynamicRegulariser
from fibec_ray.parts.part import Part, build
from fibec_ray.parts.peft import PEFTS
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.sharing import SHARINGS
from fibec_ray.parts.sharing.base import Sharing

AXES: dict[str, dict[str, type[Any]]] = {
    "peft": PEFTS,
    "curriculum": CURRICULA,
    "sharing": SHARINGS,
    "mask": MASKS,
    "objective": OBJECTIVES,
    "aggregator": AGGREGATORS,
}


def _of(axis: str) -> BeforeValidator:
    return BeforeValidator(lambda value: build(AXES[axis], value))


class Method(BaseModel):
    """`Method(name="fedavg")` is FedAvg: LoRA, all data, everything shared, no mask, plain loss, weighted mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "fedavg"
    reference: str = Field("", description="paper, for the method table")
    peft: Annotated[SerializeAsAny[Peft], _of("peft")] = Lora()
    curriculum: Annotated[SerializeAsAny[Curriculum], _of("curriculum")] = Curriculum()
    sharing: Annotated[SerializeAsAny[Sharing], _of("sharing")] = Sharing()
    mask: Annotated[SerializeAsAny[Mask], _of("mask")] = Mask()
    objective: Annotated[SerializeAsAny[Objective], _of("objective")] = Objective()
    aggregator: Annotated[SerializeAsAny[Aggregator], _of("aggregator")] = Mean()
    pooled: bool = Field(
        False,
        description="centralised training, an anchor: one place has all data, and visits as many samples in a round as "
        "a cohort does on average, other ones each time; nothing is sent",
    )

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Method:
        if self.mask.needs_personal and not self.sharing.keeps_personal:
            raise ValueError(
                f"mask '{self.mask.kind}' acts on personal layers, and sharing '{self.sharing.kind}' leaves none; "
                "set mask: none, or share less"
            )
        return self

    @model_validator(mode="after")
    def _pooled_data_need_no_federation(self) -> Method:
        federated = [axis for axis, part in self.parts.items() if axis != "peft" and part != neutral(axis)]
        if self.pooled and federated:
            kind = self.parts[federated[0]].kind
            raise ValueError(
                f"pooled data are in one place, where {federated[0]} '{kind}' as it is set means nothing; leave it "
                "out, or set pooled: false"
            )
        return self

    @model_validator(mode="after")
    def _feddyn_on_both_sides(self) -> Method:
        device = self.objective.alpha if isinstance(self.objective, DynamicRegulariser) else None
        server = self.aggregator.alpha if isinstance(self.aggregator, FedDyn) else None
        if device is None and server is None:
            return self
        if device is None or server is None:
            raise ValueError("FedDyn has two halves; set both objective: feddyn and aggregator: feddyn, or neither")
        if device != server:
            raise ValueError(
                f"objective.alpha {device} and aggregator.alpha {server} of feddyn differ; make them equal"
            )
        return self

    @property
    def parts(self) -> dict[str, Part]:
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def sends(self) -> str:
        """What devices send in a round, in words."""
        if self.pooled:
            return "nothing"
        return "; ".join(part.sends for part in self.parts.values() if part.sends)

    @property
    def keeps(self) -> str:
        """What outlasts a round beside the global model, and where, in words."""
        return "; ".join(part.keeps for part in self.parts.values() if part.keeps)

    @property
    def opens(self) -> bool:
        """True if any part has work in the initialisation phase."""
        return any(part.opens for part in self.parts.values())


def neutral(axis: str) -> Part:
    """The part that a method has on an axis if it does not say."""
    part: Part = Method.model_fields[axis].default
    return part
