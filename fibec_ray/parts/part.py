"""What every part is: a frozen pydantic model whose fields are its hyper-parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fibec_ray.errors import did_you_mean, note_renamed
from fibec_ray.parts import own
from fibec_ray.parts.hooks import check_hooks

Need = Literal["text", "classes", "transformer", "lora", "personal", "shared", "moving", "steps", "gradients", "whole"]
"""What a part may need, and another part, the task or the backbone may lack:

text: samples are tokens. classes: labels can be counted. transformer: a pretrained base. lora: matrices A and B.
personal, shared: some tensors stay on devices, or are sent. moving: personal tensors are trained. steps: what a device
sends is the sum of its optimiser's steps. gradients: training has those of the plain loss. whole: all devices send all
shared tensors, of one shape.
"""

LACKING: dict[Need, str] = {
    "text": "looks at tokens, and the samples of {other} are no text; choose another kind",
    "classes": "takes the expectation over all labels, and texts have too many; set its label to sampled, or observed",
    "transformer": "adapts a pretrained transformer, and {other} is trained from scratch; set method.peft=full",
    "lora": "is for the matrices of LoRA, and {other} has none; choose another kind, or peft lora on a transformer",
    "personal": "needs personal tensors, and {other} leaves none; set {axis}: {neutral}, or share less, such as "
    "sharing: body",
    "shared": "needs shared tensors, and {other} shares nothing; set {axis}: {neutral}, or sharing: all",
    "moving": "trains personal tensors, and {other} holds them; set {axis}: {neutral}, or mask: none",
    "steps": "reads gradients off what a device's steps add up to, which is not what {other} sends; set {axis}: "
    "{neutral}, or solver: single",
    "gradients": "takes Fisher information from training, whose gradients hold the term of {other}; set {axis}.source: "
    "pass",
    "whole": "cannot do with ranks that differ or tensors that take turns, which {other} has; set one of: {able}",
}
"""The message for a part whose need another one lacks. other: that one's name; neutral: the axis's part that changes
nothing; able: the kinds of the axis without this need."""


class Setting(NamedTuple):
    """What a part may look at in an experiment."""

    cohort_size: int
    max_length: int
    """tokens of a sample, at most"""
    optimizer: str
    momentum: float
    dtype: str
    """of the base"""
    num_layers: int | None
    """of a network from scratch; None: a transformer"""


def of_label(label: str) -> tuple[Need, ...]:
    """What Fisher information over such labels needs."""
    return ("classes",) if label == "expected" else ()


@dataclass(frozen=True)
class Passes:
    """Passes over a device's samples that a part makes itself, in a hook that is lent the model."""

    max_samples: int | None = None
    """the most samples that it looks at; None: all of the device's"""
    group: int | None = None
    """samples in one pass; None: `local.batch_size`"""
    backwards: int = 0
    """backward passes after each forward pass"""
    single_gradients: bool = False
    """True if it holds the gradients of single samples"""


class Part(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The base of all parts. `kind` is the tag that YAML names it by; unknown keys are refused.

    A class outside this package needs no kind: it is named by its file or module (parts/own.py).

    A part says in its own file what it fits: `needs`, `lacks`, `partners`, `agrees`, `silences` and `unfit_for` are
    looked at before anything starts.
    """

    costs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Hooks whose cost cannot be read off their code -> the methods that declare it. A class that overrides such a hook
    must define these methods too."""

    kind: str
    former_kinds: ClassVar[tuple[str, ...]] = ()
    """Names that `kind` had in earlier releases; YAML that uses them still works, with a note"""
    partners: ClassVar[Mapping[str, str]] = {}
    """Axis -> the one kind of it that the part goes with"""
    agrees: ClassVar[tuple[str, ...]] = ()
    """Fields that must be equal to the partners' fields of the same name"""
    silences: ClassVar[Mapping[str, str]] = {}
    """Axis -> why only the neutral part of it makes sense beside this one"""

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        """Raises TypeError for a class that overrides a costly hook and does not declare the cost."""
        super().__pydantic_init_subclass__(**arguments)
        for hook, methods in cls.costs.items():
            missing = [name for name in methods if _defined(cls, name) > _defined(cls, hook)]
            if missing:
                raise TypeError(
                    f"{cls.__name__} overrides {hook}, so it must define {' and '.join(missing)} too: a run is planned "
                    "by what a part declares there"
                )
        if own.is_own(cls):
            check_hooks(cls, Part, own.source_of(cls).name)
            kind = own.name_kind(cls)
            cls.model_fields["kind"] = FieldInfo(annotation=Literal[kind], default=kind)  # type: ignore[arg-type]
            cls.model_rebuild(force=True, raise_errors=False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Parts of a user's own travel with their source: the other process may never have seen the file."""
        if not own.is_own(type(self)):
            return super().__reduce_ex__(protocol)
        return own.arrived, (self.kind, own.source_of(type(self))), self.__getstate__()

    def as_planned(self) -> Self:
        """A part like this one whose hooks work on made-up tensors, from which runs are planned.

        What it leaves out is not counted: estimates of a Hessian's spectrum, for one.
        """
        return self

    @property
    def needs_setup(self) -> bool:
        """True if the part has work to do in the initialisation phase."""
        return False

    @property
    def needs(self) -> tuple[Need, ...]:
        """What none of the other parts, nor the task or the backbone, may lack. A subclass adds to `super().needs`."""
        return ()

    @property
    def lacks(self) -> tuple[Need, ...]:
        """What the part takes away from the others."""
        return ()

    def unfit_for(self, setting: Setting) -> str | None:
        """Why the part does not work in this setting, and what to change; None if it does."""
        return None

    @property
    def sends(self) -> str:
        """What devices send in a round because of this part, in words; '' for nothing more than the others."""
        return ""

    @property
    def keeps(self) -> str:
        """What outlasts a round because of this part, and where, in words."""
        return ""


def _defined(cls: type, name: str) -> int:
    """How far up in the class's bases `name` is defined."""
    return next(i for i, base in enumerate(cls.__mro__) if name in vars(base))


P = TypeVar("P", bound=Part)


def sources_of(*parts: Part) -> dict[str, own.Source]:
    """The files and modules, by name, that classes of a user's own come from. ValueError for two files of one name."""
    found: dict[str, own.Source] = {}
    for cls in (cls for part in parts for one in with_inner(part) for cls in type(one).__mro__):
        if not issubclass(cls, Part) or not own.is_own(cls):
            continue
        source = own.source_of(cls)
        if found.setdefault(source.name, source) != source:
            raise ValueError(f"two different files are called {source.name}, and a run keeps one of a name; rename one")
    return found


def with_inner(part: Part) -> Iterator[Part]:
    """The part, and those that it holds, such as the aggregator below a server optimiser."""
    yield part
    for name in type(part).model_fields:
        if isinstance(below := getattr(part, name), Part):
            yield from with_inner(below)


def build(registry: Mapping[str, type[P]], value: Any) -> P:
    """A part from YAML: a kind (`random`), or a mapping with `kind` and hyper-parameters. ValueError if unknown.

    A mapping without `kind` is of the first kind, the neutral one, if its keys are. A part that holds another of its
    axis finds the registry as the context of its validation.
    """
    if isinstance(value, Part):
        return value  # type: ignore[return-value]
    spec = {"kind": value} if isinstance(value, str) else value
    if isinstance(spec, Mapping) and "kind" not in spec:
        spec = {"kind": _kind_with(spec.keys(), registry), **spec}
    cls = class_of(spec, registry)
    return cls.model_validate({**spec, "kind": cls.model_fields["kind"].default}, context=registry)


def class_of(spec: Any, registry: Mapping[str, type[P]]) -> type[P]:
    """The class that a mapping's kind names, in the registry or of a user's own. ValueError if there is none."""
    kind = _named(spec, registry)
    found: type[P] | None = registry.get(kind) or _formerly(kind, registry) or own.find(kind, contract_of(registry))
    if found is None:
        raise ValueError(f"no such kind {kind!r}; {did_you_mean(kind, [*registry, *own.offered_names()])}")
    return found


def _formerly(kind: str, registry: Mapping[str, type[P]]) -> type[P] | None:
    """The class that had this kind in an earlier release, with a note that it has another name now."""
    for now, cls in registry.items():
        if kind in vars(cls).get("former_kinds", ()):
            note_renamed(f"kind {kind!r}", repr(now))
            return cls
    return None


def contract_of(registry: Mapping[str, type[P]]) -> type[P]:
    """The base class of an axis, from the parts on it."""
    some: type[P] = next(iter(registry.values()))
    return next(cls for cls in some.__mro__ if Part in cls.__bases__)


def _kind_with(keys: Collection[Any], registry: Mapping[str, type[Part]]) -> str:
    """The first kind, if it has these keys or no kind has them all; ValueError with the kinds that have."""
    (first, neutral), *_ = registry.items()
    able = [kind for kind, cls in registry.items() if all(key in cls.model_fields for key in keys)]
    if first in able or not able and len(neutral.model_fields) > 1:  # it then says which key it does not have
        return first
    raise ValueError(f"kind is missing; set it to one of: {', '.join(able or registry)}")


def kind_of(spec: Any, registry: Mapping[str, Any]) -> str:
    """The kind that a mapping names. ValueError if it is no mapping, or names none of the registry."""
    kind = _named(spec, registry)
    if kind not in registry:
        raise ValueError(f"no such kind {kind!r}; {did_you_mean(kind, registry)}")
    return kind


def _named(spec: Any, registry: Mapping[str, Any]) -> str:
    if not isinstance(spec, Mapping):
        raise ValueError(f"expected a kind or a mapping with a kind, found {type(spec).__name__}")
    if "kind" not in spec:
        raise ValueError(f"kind is missing; set it to one of: {', '.join(sorted(registry))}")
    return str(spec["kind"])
