"""A method is nine parts, one per axis.

The engine needs nothing else. Parts that are left out are those of FedAvg on LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from fibec_ray.parts.part import LACKING, Part, build, kinds_of, sources_of, with_inner
from fibec_ray.parts.peft import PEFTS
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.privacy import PRIVACIES
from fibec_ray.parts.privacy.base import Privacy
from fibec_ray.parts.sharing import SHARINGS
from fibec_ray.parts.sharing.base import Sharing
from fibec_ray.parts.solver import SOLVERS
from fibec_ray.parts.solver.base import Solver
from fibec_ray.parts.uplink import UPLINKS
from fibec_ray.parts.uplink.base import Uplink

AXES: dict[str, dict[str, type[Any]]] = {
    "peft": PEFTS,
    "curriculum": CURRICULA,
    "sharing": SHARINGS,
    "mask": MASKS,
    "objective": OBJECTIVES,
    "solver": SOLVERS,
    "privacy": PRIVACIES,
    "uplink": UPLINKS,
    "aggregator": AGGREGATORS,
}
"""The kinds of parts by axis. The first kind of an axis is its default."""


def _of(axis: str) -> BeforeValidator:
    return BeforeValidator(lambda value: build(AXES[axis], value))


def neutral(axis: str) -> Any:
    """The default part of an axis."""
    return next(iter(AXES[axis].values()))()


class Method(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A federated method: one part per axis. `Method()` is FedAvg: LoRA, all data, all layers shared, a weighted mean.

        Method(name="mine", aggregator={"kind": "median"}, peft={"kind": "lora", "r": 16})

    docs/methods.md lists every kind of each axis with its fields. Raises pydantic's ValidationError for parts that do
    not go together.
    """

    name: str = "fedavg"
    reference: str = Field("", description="paper, for the method table")
    peft: Annotated[SerializeAsAny[Peft], _of("peft")] = neutral("peft")
    curriculum: Annotated[SerializeAsAny[Curriculum], _of("curriculum")] = neutral("curriculum")
    sharing: Annotated[SerializeAsAny[Sharing], _of("sharing")] = neutral("sharing")
    mask: Annotated[SerializeAsAny[Mask], _of("mask")] = neutral("mask")
    objective: Annotated[SerializeAsAny[Objective], _of("objective")] = neutral("objective")
    solver: Annotated[SerializeAsAny[Solver], _of("solver")] = neutral("solver")
    privacy: Annotated[SerializeAsAny[Privacy], _of("privacy")] = neutral("privacy")
    uplink: Annotated[SerializeAsAny[Uplink], _of("uplink")] = neutral("uplink")
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
                f"pooled: true puts all data in one place, so {federated[0]} '{kind}' as it is set has no "
                "effect; leave it out, or set pooled: false"
            )
        if self.pooled and self.peft.differs_by_device:
            raise ValueError(
                "pooled: true puts all data in one place, so peft.ranks of device classes have no effect; "
                "leave them out"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Method:
        """Check that the parts go together, by the rules in their own files."""
        for axis, part in self.all_parts:
            _check_words(axis, part)
            for other, kinds in part.partners.items():
                self._go_together(axis, part, other, kinds_of(kinds))
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
                    words["undo"] = f"{other}: {neutral(other).kind}"
                    why = LACKING[need].format(**words, able=", ".join(able))
                    raise ValueError(f"{axis} '{part.kind}' {why}")
        _ = self.sources  # raises ValueError for two of one name
        return self

    def _go_together(self, axis: str, part: Part, other: str, kinds: Sequence[str]) -> None:
        """Raise ValueError unless the other axis has one of the kinds, or a user's version of it, with the same values.

        kinds: the usual one first.
        """
        partner, registry = self.parts[other], AXES[other]
        ready_made = tuple(registry[kind] for kind in kinds if kind in registry and kind != neutral(other).kind)
        own = partner.kind not in registry and isinstance(partner, ready_made)
        if partner.kind not in kinds and not own:
            able = " or ".join(f"'{kind}'" for kind in kinds)
            both = "set both, or neither" if len(kinds) == 1 else "set one of these, or neither part"
            raise ValueError(f"{axis} '{part.kind}' needs {other} {able}, found '{partner.kind}'; {both}")
        for field in part.agrees:
            mine, theirs = getattr(part, field), getattr(partner, field, None)
            if mine != theirs:
                raise ValueError(
                    f"{axis}.{field} {mine} and {other}.{field} {theirs} of {partner.kind} differ; make them equal"
                )

    @property
    def sources(self) -> dict[str, Source]:
        """Files and modules of the user's own parts, by name."""
        return sources_of(*self.parts.values())

    @property
    def parts(self) -> dict[str, Part]:
        """The method's part on each axis."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def all_parts(self) -> list[tuple[str, Part]]:
        """All parts with their axes, parts inside other parts included."""
        return [(axis, one) for axis, part in self.parts.items() for one in with_inner(part)]

    @property
    def sends(self) -> str:
        """Describe what devices send in a round."""
        if self.pooled:
            return "nothing"
        return "; ".join(part.sends for _, part in self.all_parts if part.sends)

    @property
    def keeps(self) -> str:
        """Describe what is kept from round to round besides the global model, and where."""
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
    """Raise ValueError for a name in a part's rules that does not exist."""
    needs, axes, fields = (*part.needs, *part.lacks), (*part.partners, *part.silences), part.agrees
    for words, known in ((needs, LACKING), (axes, AXES), (fields, type(part).model_fields)):
        for word in words:
            if word not in known:
                raise ValueError(f"{axis} '{part.kind}' says {word!r}; {did_you_mean(word, known)}")
