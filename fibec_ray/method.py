"""A method is seven parts; the engine knows nothing else about it. FedAvg on LoRA is the empty composition."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, model_validator

from fibec_ray.errors import did_you_mean
from fibec_ray.parts.aggregator import AGGREGATORS
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.curriculum import CURRICULA
from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.mask import MASKS
from fibec_ray.parts.mask.base import Mask
from fibec_ray.parts.objective import OBJECTIVES
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.own import Source
from fibec_ray.parts.part import LACKING, Part, build, sources_of, with_inner
from fibec_ray.parts.peft import PEFTS
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.sharing import SHARINGS
from fibec_ray.parts.sharing.base import Sharing
from fibec_ray.parts.solver import SOLVERS
from fibec_ray.parts.solver.base import Solver

AXES: dict[str, dict[str, type[Any]]] = {
    "peft": PEFTS,
    "curriculum": CURRICULA,
    "sharing": SHARINGS,
    "mask": MASKS,
    "objective": OBJECTIVES,
    "solver": SOLVERS,
    "aggregator": AGGREGATORS,
}
"""The first kind of each axis is its neutral one, which a method has if it names none."""


def _of(axis: str) -> BeforeValidator:
    return BeforeValidator(lambda value: build(AXES[axis], value))


def neutral(axis: str) -> Any:
    """The part that a method has on an axis if it does not say."""
    return next(iter(AXES[axis].values()))()


class Method(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """`Method(name="fedavg")` is FedAvg: LoRA, all data, all shared, no mask, plain loss, one training, a mean."""

    name: str = "fedavg"
    reference: str = Field("", description="paper, for the method table")
    peft: Annotated[SerializeAsAny[Peft], _of("peft")] = neutral("peft")
    curriculum: Annotated[SerializeAsAny[Curriculum], _of("curriculum")] = neutral("curriculum")
    sharing: Annotated[SerializeAsAny[Sharing], _of("sharing")] = neutral("sharing")
    mask: Annotated[SerializeAsAny[Mask], _of("mask")] = neutral("mask")
    objective: Annotated[SerializeAsAny[Objective], _of("objective")] = neutral("objective")
    solver: Annotated[SerializeAsAny[Solver], _of("solver")] = neutral("solver")
    aggregator: Annotated[SerializeAsAny[Aggregator], _of("aggregator")] = neutral("aggregator")
    pooled: bool = Field(
        False,
        description="centralised training, an anchor: one place has all data, and visits as many samples in a round as "
        "a cohort does on average, other ones each time; nothing is sent",
    )

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
    def _parts_fit(self) -> Method:
        """What the parts say of each other, in their own files."""
        for axis, part in self.all_parts:
            _check_words(axis, part)
            for other, kind in part.partners.items():
                self._go_together(axis, part, other, kind)
            for other, why in part.silences.items():
                if (idle := self.parts[other]) != neutral(other):
                    raise ValueError(
                        f"{axis} '{part.kind}' {why}, so {other} '{idle.kind}' has no effect; leave it out"
                    )
        for axis, part in self.all_parts:
            for other, beside in self.all_parts:
                for need in (need for need in part.needs if need in beside.lacks):
                    able = [kind for kind, cls in AXES[axis].items() if need not in cls().needs]
                    words = {"other": f"{other} '{beside.kind}'", "axis": axis, "neutral": neutral(axis).kind}
                    why = LACKING[need].format(**words, able=", ".join(able))
                    raise ValueError(f"{axis} '{part.kind}' {why}")
        _ = self.sources  # raises ValueError for two of one name
        return self

    def _go_together(self, axis: str, part: Part, other: str, kind: str) -> None:
        """Raises ValueError unless the other axis has this kind, or a user's own version of it, and they agree."""
        partner, registry = self.parts[other], AXES[other]
        ready_made = registry.get(kind) if kind != neutral(other).kind else None
        own = ready_made and partner.kind not in registry and isinstance(partner, ready_made)
        if partner.kind != kind and not own:
            raise ValueError(
                f"{axis} '{part.kind}' needs {other} '{kind}', found '{partner.kind}'; set both, or neither"
            )
        for field in part.agrees:
            mine, theirs = getattr(part, field), getattr(partner, field, None)
            if mine != theirs:
                raise ValueError(
                    f"{axis}.{field} {mine} and {other}.{field} {theirs} of {kind} differ; make them equal"
                )

    @property
    def sources(self) -> dict[str, Source]:
        """The files and modules of a user's own parts, by name."""
        return sources_of(*self.parts.values())

    @property
    def parts(self) -> dict[str, Part]:
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def all_parts(self) -> list[tuple[str, Part]]:
        """With their axes; parts within others too."""
        return [(axis, one) for axis, part in self.parts.items() for one in with_inner(part)]

    @property
    def sends(self) -> str:
        """What devices send in a round, in words."""
        if self.pooled:
            return "nothing"
        return "; ".join(part.sends for _, part in self.all_parts if part.sends)

    @property
    def keeps(self) -> str:
        """What outlasts a round beside the global model, and where, in words."""
        return "; ".join(part.keeps for _, part in self.all_parts if part.keeps)

    @property
    def has_own_models(self) -> bool:
        """True if a device's model is not the global one although it shares every tensor."""
        return self.solver.has_own_model or self.peft.differs_by_device

    @property
    def needs_setup(self) -> bool:
        """True if any part has work in the initialisation phase."""
        return any(part.needs_setup for part in self.parts.values())


def _check_words(axis: str, part: Part) -> None:
    """Raises ValueError for a word in what a part fits that nothing would ever look at."""
    needs, axes, fields = (*part.needs, *part.lacks), (*part.partners, *part.silences), part.agrees
    for words, known in ((needs, LACKING), (axes, AXES), (fields, type(part).model_fields)):
        for word in words:
            if word not in known:
                raise ValueError(f"{axis} '{part.kind}' says {word!r}; {did_you_mean(word, known)}")
