"""A method is seven parts; the engine knows nothing else about it. FedAvg on LoRA is the empty composition."""

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
from fibec_ray.parts.objective.moon import Moon
from fibec_ray.parts.part import Part, build
from fibec_ray.parts.peft import PEFTS
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.sharing import SHARINGS
from fibec_ray.parts.sharing.base import Sharing
from fibec_ray.parts.sharing.nothing import Nothing
from fibec_ray.parts.solver import SOLVERS
from fibec_ray.parts.solver.base import Solver
from fibec_ray.parts.solver.fedrep import FedRep
from fibec_ray.parts.solver.idle import Idle

AXES: dict[str, dict[str, type[Any]]] = {
    "peft": PEFTS,
    "curriculum": CURRICULA,
    "sharing": SHARINGS,
    "mask": MASKS,
    "objective": OBJECTIVES,
    "solver": SOLVERS,
    "aggregator": AGGREGATORS,
}

Half = tuple[str, str]
HALVES: tuple[tuple[Half, tuple[str, tuple[str, ...]]], ...] = (
    (("aggregator", "flora"), ("peft", ("moving_lora",))),
    (("peft", "moving_lora"), ("aggregator", ("flora",))),
    (("aggregator", "flexlora"), ("peft", ("lora",))),
    (("aggregator", "hetlora"), ("peft", ("lora",))),
    (("peft", "sparse_lora"), ("sharing", ("all",))),
    (("peft", "adalora"), ("objective", ("adalora",))),
    (("objective", "adalora"), ("peft", ("adalora",))),
    (("objective", "rank_pruning"), ("aggregator", ("hetlora",))),
)
"""(axis, kind) that has no meaning without one of the kinds of another axis."""


def _of(axis: str) -> BeforeValidator:
    return BeforeValidator(lambda value: build(AXES[axis], _with_kind(axis, value)))


def _with_kind(axis: str, value: Any) -> Any:
    """Settings of the PEFT kind are LoRA's where no kind is named, as on a command line that sets one of them."""
    return {"kind": "lora", **value} if axis == "peft" and isinstance(value, dict) and "kind" not in value else value


class Method(BaseModel):
    """`Method(name="fedavg")` is FedAvg: LoRA, all data, all shared, no mask, plain loss, one training, a mean."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = "fedavg"
    reference: str = Field("", description="paper, for the method table")
    peft: Annotated[SerializeAsAny[Peft], _of("peft")] = Lora()
    curriculum: Annotated[SerializeAsAny[Curriculum], _of("curriculum")] = Curriculum()
    sharing: Annotated[SerializeAsAny[Sharing], _of("sharing")] = Sharing()
    mask: Annotated[SerializeAsAny[Mask], _of("mask")] = Mask()
    objective: Annotated[SerializeAsAny[Objective], _of("objective")] = Objective()
    solver: Annotated[SerializeAsAny[Solver], _of("solver")] = Solver()
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
        if self.pooled and self.peft.differs_by_device:
            raise ValueError(
                "pooled data are in one place, where peft.ranks of device classes mean nothing; leave them out"
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

    @model_validator(mode="after")
    def _parts_of_the_adapter(self) -> Method:
        """Ranks that differ, and tensors that take turns, need parts that know what to do with what is not sent."""
        peft = self.peft
        what = "ranks that differ" if peft.differs_by_device else "tensors that take turns"
        if not (peft.differs_by_device or peft.takes_turns):
            return self
        for axis in ("objective", "aggregator"):
            part = getattr(self, axis)
            if not part.takes_parts:
                able = [kind for kind, cls in AXES[axis].items() if cls.takes_parts]
                raise ValueError(
                    f"{axis} '{part.kind}' cannot do with {what} (peft {peft.kind}); set one of: {', '.join(able)}"
                )
        return self

    @model_validator(mode="after")
    def _halves(self) -> Method:
        """Methods whose parts on two axes need each other."""
        for (axis, kind), (other, needed) in HALVES:
            if getattr(self, axis).kind == kind and getattr(self, other).kind not in needed:
                raise ValueError(
                    f"{axis} '{kind}' needs {other} '{needed[0]}', found '{getattr(self, other).kind}'; set both"
                )
        return self

    @model_validator(mode="after")
    def _parts_fit_the_solver(self) -> Method:
        if self.solver.needs_personal and not self.sharing.keeps_personal:
            raise ValueError(
                f"solver '{self.solver.kind}' trains personal tensors by themselves, and sharing '{self.sharing.kind}' "
                "leaves none; share less, such as sharing: body"
            )
        if self.solver.needs_shared and isinstance(self.sharing, Nothing):
            raise ValueError(
                f"solver '{self.solver.kind}' starts from what is shared, and sharing 'none' shares nothing; "
                "set sharing: all, or solver: once"
            )
        if isinstance(self.solver, FedRep) and self.mask.freezes:
            raise ValueError(f"solver 'fedrep' trains the head, and mask '{self.mask.kind}' holds it; set mask: none")
        reads_steps = self.objective.needs_plain_sgd or isinstance(self.objective, DynamicRegulariser)
        if reads_steps and not self.solver.sums_steps:
            raise ValueError(
                f"objective '{self.objective.kind}' reads gradients off what a device's steps add up to, which is not "
                f"what solver '{self.solver.kind}' sends; set objective: plain, or solver: once"
            )
        return self

    @model_validator(mode="after")
    def _features_fit(self) -> Method:
        kind = self.objective.kind
        if self.objective.needs_features and self.mask.learns_from_training:
            raise ValueError(
                f"mask '{self.mask.kind}' takes Fisher information from training, whose gradients hold the term of "
                f"objective '{kind}'; set mask.source: pass"
            )
        if isinstance(self.objective, Moon) and isinstance(self.sharing, Nothing):
            raise ValueError("objective 'moon' has no effect where nothing is shared: z_g = z_p; set sharing: all")
        return self

    @model_validator(mode="after")
    def _nothing_to_train(self) -> Method:
        for axis in ("curriculum", "mask", "objective", "aggregator"):
            if isinstance(self.solver, Idle) and self.parts[axis] != neutral(axis):
                raise ValueError(
                    f"solver 'idle' trains nothing, so {axis} '{self.parts[axis].kind}' has no effect; leave it out"
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
    def has_own_models(self) -> bool:
        """True if a device's model is not the global one although it shares every tensor."""
        return self.solver.has_own_model or self.peft.differs_by_device

    @property
    def opens(self) -> bool:
        """True if any part has work in the initialisation phase."""
        return any(part.opens for part in self.parts.values())


def neutral(axis: str) -> Part:
    """The part that a method has on an axis if it does not say."""
    part: Part = Method.model_fields[axis].default
    return part
