"""The base class of all parts: a frozen pydantic model whose fields are the hyper-parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fibec_ray.errors import did_you_mean, note_renamed
from fibec_ray.parts import own
from fibec_ray.parts.hooks import check_hooks

Need = Literal[
    "text",
    "classes",
    "transformer",
    "one_stack",
    "position",
    "lora",
    "pairs",
    "personal",
    "shared",
    "moving",
    "steps",
    "gradients",
    "whole",
    "exact",
    "dense",
    "received",
    "fresh",
    "updates",
    "weights",
    "extras",
    "samples",
    "per_sample",
    "one_rank",
]
"""Things that a part may need and that another part, the task or the backbone may lack.

text: samples are tokens. classes: labels can be counted. transformer: a pretrained base. one_stack: a base
whose blocks all see one sequence, unlike those of an encoder-decoder. position: a place in that sequence whose
output predicts the answer. lora: matrices A and B. pairs: the server has A wherever it has B, and B wherever it has A.
personal, shared: some tensors stay on devices, or are sent. moving: personal tensors are trained. steps: a device sends
the sum of its optimiser's steps. gradients: training computes the gradients of the plain loss. whole: all devices send
all shared tensors, in one shape. exact: the server sees the delta that the device computed. dense: it sees some value
of each entry. received: it knows the tensors that devices train from. fresh: all devices of a round start from the
server's current model. updates: it sees each device's update, not only a mean. weights: devices weigh differently.
extras: devices send tensors beside the delta. samples: what a device sends may be computed from its samples without
protection. per_sample: the loss is a mean over samples, each with its own gradient. one_rank: all devices' adapters
have the same rank.
"""

LACKING: dict[Need, str] = {
    "text": "works on tokens, but the samples of {other} are not text; choose another kind",
    "classes": "takes the expectation over all labels, but texts and tags have too many; set its label to "
    "sampled or observed",
    "transformer": "adapts a pretrained transformer, but {other} is trained from scratch; set method.peft=full",
    "one_stack": "adds virtual tokens to one sequence, but {other} has two, source and target; choose lora, ia3 or "
    "adapter",
    "position": "compares states at the answer's position, but {other} has two sequences, source and target; set "
    "method.sharing.score_at=tokens",
    "lora": "works on LoRA's matrices, but {other} has none; choose another kind, or peft lora on a transformer",
    "pairs": "works on products of LoRA's two matrices, but {other} leaves one of them on the devices; set sharing: "
    "all, or {axis}: {neutral}",
    "personal": "needs personal tensors, but {other} leaves none; set {axis}: {neutral}, or share less, such as "
    "sharing: body",
    "shared": "needs shared tensors, but {other} shares nothing; set {axis}: {neutral}, or sharing: all",
    "moving": "trains personal tensors, but {other} freezes them; set {axis}: {neutral}, or mask: none",
    "steps": "computes gradients from the sum of a device's steps, but {other} sends something else; set {axis}: "
    "{neutral}, or solver: single",
    "gradients": "takes Fisher information from training, but {other} changes those gradients; set {axis}.source: pass",
    "whole": "needs every device to send all tensors in one shape, but {other} has different ranks or trains tensors "
    "in turn; set one of: {able}",
    "exact": "needs the delta that a device computed, but {other} changes it on its way; set {undo}",
    "dense": "compares the devices' values of each entry, but {other} sends only some entries; choose another uplink, "
    "or {axis}: {neutral}",
    "received": "adds deltas to the tensors that devices received, but {other} sends them only some entries; choose "
    "another uplink, or {axis}: {neutral}",
    "fresh": "needs all devices of a round to start from the current model, but {other} combines updates of devices "
    "that started from older ones; set schedule: sync, or schedule.kind=deadline with late: drop",
    "updates": "works on updates of single devices, but {other} shows the server only their noised mean; set {axis} "
    "to one of: {able}; or set {undo}",
    "weights": "counts devices by their batches, but {other} counts all equally; leave {axis}.weights out",
    "extras": "sends tensors beside its update, but {other} protects the update alone; set {axis}: {neutral}, or "
    "{undo}",
    "samples": "sends what it computes from a device's samples, but {other} protects local training alone; set {axis} "
    "to one of: {able}; or set {undo}",
    "one_rank": "adds noise to what each device sends, but {other} gives devices different ranks; set {axis}.noise_at: "
    "server",
    "per_sample": "clips the gradient of each sample's loss, but {other} changes the loss; set {undo}",
}
"""The message for a part whose need another part lacks.

other: that part's name. undo: the setting that puts the neutral part in its place. neutral: the axis's part that
changes nothing. able: the kinds of the axis without this need.
"""


class Setting(NamedTuple):
    """The settings of an experiment that a part may check."""

    cohort_size: int
    max_length: int
    """most tokens of a sample"""
    optimizer: str
    momentum: float
    dtype: str
    """of the frozen base"""
    num_layers: int | None
    """of a network from scratch; None: a transformer"""
    adapter_dtype: str = "auto"
    """of the adapter's products: auto, float32 or base"""
    dropout: bool = True
    """True if training drops anything out, in the adapter or in the base"""
    weight_decay: float = 0.0
    sampling: Literal["fixed", "poisson"] | None = "fixed"
    """how cohorts are drawn: a fixed number of devices, or each independently; None: in another way"""


def of_label(label: str) -> tuple[Need, ...]:
    """What Fisher information with this choice of labels needs."""
    return ("classes",) if label == "expected" else ()


@dataclass(frozen=True)
class Passes:
    """Extra passes over a device's samples that a part makes in one of its hooks. Run plans count them."""

    max_samples: int | None = None
    """most samples used; None: all of the device's"""
    group: int | None = None
    """samples in one pass; None: `local.batch_size`"""
    backwards: int = 0
    """backward passes after each forward pass"""
    single_gradients: bool = False
    """True if it computes the gradients of single samples"""


class Part(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The base of all parts. `kind` is the name in YAML; unknown keys are rejected.

    A class outside this package needs no `kind`: its file or module names it (parts/own.py).

    A part declares in its own file what it can be combined with. `needs`, `lacks`, `partners`, `agrees`, `silences` and
    `unfit_for` are checked before a run starts.
    """

    costs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Hook -> the methods that declare its cost, for hooks whose cost cannot be derived. A class that overrides the
    hook must define these methods too.
    """

    kind: str
    former_kinds: ClassVar[tuple[str, ...]] = ()
    """Names that `kind` had in earlier releases; YAML that uses them still works, with a note"""
    partners: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}
    """Axis -> the only kind on that axis that this part works with, or several such kinds, the usual one first"""
    agrees: ClassVar[tuple[str, ...]] = ()
    """Fields that must equal the partners' fields of the same name"""
    silences: ClassVar[Mapping[str, str]] = {}
    """Axis -> why only its neutral part makes sense with this part"""

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        """Check a new part class. Raises TypeError for a costly hook without a declared cost, or for a wrong hook."""
        super().__pydantic_init_subclass__(**arguments)
        for hook, methods in cls.costs.items():
            missing = [name for name in methods if _defined(cls, name) > _defined(cls, hook)]
            if missing:
                raise TypeError(
                    f"{cls.__name__} overrides {hook}, so it must define {' and '.join(missing)} too: run plans "
                    "count what they declare"
                )
        if own.is_own(cls):
            check_hooks(cls, Part, own.source_of(cls).name)
            kind = own.name_kind(cls)
            cls.model_fields["kind"] = FieldInfo(annotation=Literal[kind], default=kind)  # type: ignore[arg-type]
            cls.model_rebuild(force=True, raise_errors=False)

    @classmethod
    def usual_partners(cls) -> dict[str, str]:
        """Axis -> the kind that this part needs there; the usual one of several."""
        return {axis: kinds_of(kinds)[0] for axis, kinds in cls.partners.items()}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Send a user's own part with its source, since the other process may never have seen the file."""
        if not own.is_own(type(self)):
            return super().__reduce_ex__(protocol)
        return own.unpickled, (self.kind, own.source_of(type(self))), self.__getstate__()

    def as_planned(self) -> Self:
        """A copy of the part whose hooks work on made-up tensors, for planning a run.

        It may leave out work that cannot be planned, such as estimates of a Hessian's spectrum.
        """
        return self

    @property
    def needs_setup(self) -> bool:
        """True if the part has work to do in the setup phase."""
        return False

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the other parts, the task and the backbone must all provide. A subclass adds to `super().needs`."""
        return ()

    @property
    def lacks(self) -> tuple[Need, ...]:
        """What the part takes away from the others."""
        return ()

    def unfit_for(self, setting: Setting) -> str | None:
        """Why the part does not work in this setting and what to change; None if it works."""
        return None

    @property
    def sends(self) -> str:
        """What devices send in a round because of this part, for tables; '' if nothing is added."""
        return ""

    @property
    def keeps(self) -> str:
        """What this part stores between rounds and where, for tables."""
        return ""


def kinds_of(partner: str | tuple[str, ...]) -> tuple[str, ...]:
    """The kinds that a value of `partners` names."""
    return (partner,) if isinstance(partner, str) else partner


def _defined(cls: type, name: str) -> int:
    """Position in the class's MRO where `name` is defined; 0 is the class itself."""
    return next(i for i, base in enumerate(cls.__mro__) if name in vars(base))


P = TypeVar("P", bound=Part)


def sources_of(*parts: Part) -> dict[str, own.Source]:
    """The files and modules of users' own classes, by name. Raises ValueError if two files share a name."""
    found: dict[str, own.Source] = {}
    for cls in (cls for part in parts for one in with_inner(part) for cls in type(one).__mro__):
        if not issubclass(cls, Part) or not own.is_own(cls):
            continue
        source = own.source_of(cls)
        if found.setdefault(source.name, source) != source:
            raise ValueError(f"two different files are called {source.name}; a run keeps files by name, so rename one")
    return found


def with_inner(part: Part) -> Iterator[Part]:
    """Yield the part and the parts it holds, such as the aggregator inside a server optimiser."""
    yield part
    for name in type(part).model_fields:
        if isinstance(below := getattr(part, name), Part):
            yield from with_inner(below)


def build(registry: Mapping[str, type[P]], value: Any) -> P:
    """Build a part from YAML: a kind such as `random`, or a mapping with `kind` and hyper-parameters.

    A mapping without `kind` gets the neutral kind if that kind has its keys. A part that holds another part of its axis
    finds the registry in its validation context. Raises ValueError for an unknown kind.
    """
    if isinstance(value, Part):
        return value  # type: ignore[return-value]
    spec = {"kind": value} if isinstance(value, str) else value
    if isinstance(spec, Mapping) and "kind" not in spec:
        spec = {"kind": _kind_with(spec.keys(), registry), **spec}
    cls = class_of(spec, registry)
    return cls.model_validate({**spec, "kind": cls.model_fields["kind"].default}, context=registry)


def class_of(spec: Any, registry: Mapping[str, type[P]]) -> type[P]:
    """The class that a mapping's kind names, from the registry or a user's own. Raises ValueError if there is none."""
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
    """The base class of an axis, found from the parts on it."""
    some: type[P] = next(iter(registry.values()))
    return next(cls for cls in some.__mro__ if Part in cls.__bases__)


def _kind_with(keys: Collection[Any], registry: Mapping[str, type[Part]]) -> str:
    """The neutral kind if it has these keys; else ValueError with the kinds that have them."""
    (first, neutral), *_ = registry.items()
    able = [kind for kind, cls in registry.items() if all(key in cls.model_fields for key in keys)]
    if first in able or not able and len(neutral.model_fields) > 1:  # its validation then names the unknown key
        return first
    raise ValueError(f"kind is missing; set it to one of: {', '.join(able or registry)}")


def kind_of(spec: Any, registry: Mapping[str, Any]) -> str:
    """The kind that a mapping names. Raises ValueError if it is not a mapping or the kind is unknown."""
    kind = _named(spec, registry)
    if kind not in registry:
        raise ValueError(f"no such kind {kind!r}; {did_you_mean(kind, registry)}")
    return kind


def _named(spec: Any, registry: Mapping[str, Any]) -> str:
    """The value of `kind` in a mapping. Raises ValueError if it is missing."""
    if not isinstance(spec, Mapping):
        raise ValueError(f"expected a kind or a mapping with a kind, found {type(spec).__name__}")
    if "kind" not in spec:
        raise ValueError(f"kind is missing; set it to one of: {', '.join(sorted(registry))}")
    return str(spec["kind"])
