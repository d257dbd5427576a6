"""What travels in a federation: plans down, updates and reports up; and the protocol `Fleet`.

Shapes: L transformer blocks, n samples of a shard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.likelihoods import NO_TAG
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import Tensors, joined, joint_norm, under_prefix, with_prefix

SETUP_ROUND = -1
"""The round number under which the initialisation phase is planned, seeded and logged."""


class StateRef(NamedTuple):
    """Names one stored state of a device: the round that wrote it, and the digest of its tensors."""

    version: int
    digest: str
    """'' if unknown: checkpoints of older programs name versions only"""


States = Mapping[int, StateRef]
"""The accepted state of each device; a device that has stored nothing is left out."""


class Later(NamedTuple):
    """Devices that start from one model, and whose updates are combined in one later round."""

    round: int
    version: int
    """the round whose model they start from"""
    devices: tuple[int, ...]


class DroppedWork(NamedTuple):
    """The predicted cost of devices whose work does not count, summed."""

    flops: float
    num_bytes: int
    """received and sent"""
    energy_j: float


NOTHING_DROPPED = DroppedWork(0.0, 0, 0.0)


@dataclass(frozen=True)
class RoundPlan:
    """Everything that is decided about a round before it runs."""

    round: int
    rounds: int
    cohort: tuple[int, ...]
    learning_rate: float
    states: States = field(default_factory=dict)
    """the state that each device of the cohort starts from"""
    shares: Mapping[int, float] = field(default_factory=dict)
    """devices that train on a part of their batches only, because they drop out in mid-round"""
    dropped: tuple[int, ...] = ()
    """devices that were drawn and send nothing that counts; they are not in the cohort"""
    dropped_work: DroppedWork | None = NOTHING_DROPPED
    """the cost of the work of those devices; None if that is not predicted"""
    versions: Mapping[int, int] = field(default_factory=dict)
    """devices of the cohort that started from the model of an earlier round, and that round"""
    under_way: Mapping[int, int] = field(default_factory=dict)
    """devices that are still at work when the round ends and whose update will count; the round whose model they
    started from"""
    ahead: tuple[Later, ...] = ()
    """work of later rounds that can begin, as far as it is known"""
    times: Mapping[int, float] = field(default_factory=dict)
    """predicted virtual seconds of the cohort's devices; empty if times are computed from what was done"""
    seconds: float | None = None
    """virtual seconds since the end of the round before; None: those of the slowest device"""

    def version_of(self, device: int) -> int:
        """The round whose model a device of the cohort started from."""
        return self.versions.get(device, self.round)


@dataclass(frozen=True)
class Broadcast:
    """What the server sends to every device of a round."""

    round: int
    shared: Tensors
    control: Tensors = field(default_factory=dict)
    """what the objective sends to devices, such as a control variate"""
    payload: Tensors = field(default_factory=dict)
    """further shared tensors, encoded, if the method's uplink encodes what the server sends"""
    encoded: tuple[str, ...] = ()
    """the names of the tensors in the payload, in their order"""
    privacy: Tensors = field(default_factory=dict)
    """what the privacy rule sends to devices, such as a clipping norm"""


@dataclass(frozen=True)
class DeviceState:
    """What a device keeps between its rounds: personal tensors, and one memory for each axis that has one."""

    personal: Tensors = field(default_factory=dict)
    memory: Mapping[str, Tensors] = field(default_factory=dict)

    def flat(self) -> Tensors:
        """One dict for storage: `personal/NAME` and `memory/AXIS/NAME`."""
        out = with_prefix("personal", self.personal)
        for axis, tensors in self.memory.items():
            out |= with_prefix(f"memory/{axis}", tensors)
        return out

    @staticmethod
    def from_flat(tensors: Mapping[str, Tensor]) -> DeviceState:
        """Rebuild a state from what `flat` returned."""
        memory = under_prefix("memory", tensors)
        axes = dict.fromkeys(name.split("/", 1)[0] for name in memory)
        return DeviceState(under_prefix("personal", tensors), {axis: under_prefix(axis, memory) for axis in axes})


@dataclass(frozen=True)
class DeviceUpdate:
    """What a device sends to the server: delta = new - received over the shared names, plus the parts' extras."""

    device: int
    num_samples: int
    num_steps: int
    delta: Tensors
    """on the server's scale; tensors of a lower rank than the server's lack the entries that the device does not have,
    which the server fills with zeros before an aggregator sees them. On the way it is the payload of the method's
    uplink, which the server decodes first"""
    extras: Tensors = field(default_factory=dict)
    rank: int | None = None
    """of the device's adapter, where devices differ"""
    learning_rate: float = 0.0
    """of its steps"""
    fault: str | None = None
    """why the device sends nothing, if its training gave no usable update"""
    num_batches: int = 1
    """ceil(num_samples / local.batch_size); the server sets it before an aggregator sees the update"""
    staleness: int = 0
    """rounds that ended since the device started; the server sets it too"""


@dataclass(frozen=True)
class Asked:
    """What the server expects of every update of a round."""

    round: int
    learning_rate: float
    """of the round's plan"""
    shared: Tensors
    """the server's tensors that the round trains"""
    control: Tensors = field(default_factory=dict)
    """of the objective, as it was sent"""
    layers: Mapping[str, int | None] = field(default_factory=dict)
    """the transformer block of each tensor; None: outside of blocks"""
    heads: Collection[str] = ()
    """the tensors that belong to a task's head, not to the adapter"""
    answers: Answers = Answers(likelihood="categorical", num_scores=2)
    """what a model gives for a sample"""
    untrained: Tensors = field(default_factory=dict)
    """the server's other shared tensors"""

    def layer_of(self, name: str) -> int | None:
        """The transformer block that a shared tensor belongs to; None outside of blocks."""
        return self.layers.get(name)

    def is_adapter(self, name: str) -> bool:
        """False for the tensors of a task's head."""
        return name not in self.heads

    @cached_property
    def scale(self) -> float:
        """The norm of the shared tensors, or that of as many ones if it is smaller."""
        return max(joint_norm(self.shared), math.sqrt(sum(value.numel() for value in self.shared.values())))


@dataclass(frozen=True)
class Extra:
    """A tensor that an update must have beside its delta."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    least: float = -math.inf
    """the smallest value that an entry may have"""

    @property
    def num_bytes(self) -> int:
        """On the wire."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class LayerScores:
    """A device's scores of the transformer blocks; None where the method uses none."""

    sensitivity: Tensor | None = None
    """(L,) float32"""
    keep_ratio: float | None = None
    """share of the blocks to communicate, from the Hessian spectrum of the device's loss"""

    @property
    def num_bytes(self) -> int:
        """On the wire, float32 each."""
        count = 0 if self.sensitivity is None else self.sensitivity.numel()
        return 4 * (count + (self.keep_ratio is not None))


@dataclass(frozen=True)
class LayerReport:
    """What a device sends up once, in the initialisation phase."""

    device: int
    num_samples: int
    scores: LayerScores


@dataclass(frozen=True)
class Layout:
    """Description of the trainable tensors, the same in every process of a fleet."""

    layers: Mapping[str, int | None]
    """the block of each trainable or server-only tensor; None: head or prompts"""
    num_layers: int
    adapter_config: Mapping[str, Any]
    """as `LocalModel` has it"""
    server_only: frozenset[str] = frozenset()
    """those that no device trains"""
    heads: frozenset[str] = frozenset()
    """those of a task's head"""


@dataclass(frozen=True)
class SetupResult:
    """Result of the initialisation phase: the devices' reports, and the tensors that the server chose to share."""

    reports: list[DeviceReport]
    shared_names: frozenset[str]
    layout: Layout
    layer_scores: Tensor | None
    """(L,) float32, averaged over devices"""
    own_models: bool = False
    """True if the method's solver makes a model for each device, beside shared and personal tensors"""
    frozen_personal: bool = False
    """True if personal tensors stay as they were at the start, the same on all devices"""

    @property
    def keeps_personal(self) -> bool:
        """False if devices keep nothing of their own, so that every device's model is the global one."""
        return self.own_models or not self.layout.layers.keys() <= self.shared_names

    @property
    def has_global_model(self) -> bool:
        """False if devices train heads of their own.

        The server's head was then never trained with this body, so its score is meaningless.
        """
        heads = {name for name, layer in self.layout.layers.items() if layer is None}
        return self.frozen_personal or heads <= self.shared_names


@dataclass(frozen=True)
class RoundResult:
    """Result of a round.

    reports: one for each device that finished, in cohort order, quarantined ones included. lost: devices whose update
    never arrived. digest: hash of the shared tensors afterwards; "" if the fleet was not told.
    """

    reports: list[DeviceReport]
    lost: tuple[int, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Predictions:
    """Evaluation of some rows: the true and predicted class and the loss of each."""

    labels: Tensor
    """(n,) int64 class ids; float32 values in a regression; 1 where answers are texts; (n, T) the tags of each row's
    words, NO_TAG behind the last"""
    predicted: Tensor
    """(n,) the same; 1 where a text is given to the letter"""
    losses: Tensor
    """(n,) float32"""
    num_tokens: Tensor | None = None
    """(n,) int64 tokens that each loss is the mean of; None where answers are neither texts nor tags"""

    @staticmethod
    def join(parts: list[Predictions]) -> Predictions:
        """Concatenate predictions in order; empty tensors if there are none."""
        parts = [part for part in parts if len(part.labels)]
        if not parts:
            empty = torch.empty(0, dtype=torch.int64)
            return Predictions(empty, empty, torch.empty(0))
        return Predictions(
            joined([part.labels for part in parts], NO_TAG),
            joined([part.predicted for part in parts], NO_TAG),
            torch.cat([part.losses for part in parts]),
            _joined([part.num_tokens for part in parts]),
        )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


@dataclass(frozen=True)
class EvaluationResult:
    """Predictions of the global model on the test set, and of every device's own model on its own test shard."""

    shared: Predictions
    personal: dict[int, Predictions]


Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work goes on; stage is one of start, open, train, evaluate."""


@dataclass(frozen=True)
class Calibration:
    """How many devices train in one pass, as the trial for `fleet.lanes: auto` found.

    rates: device-steps per second, by the number of lanes tried; empty where no trial was needed. limit: why more lanes
    were not tried, if memory is the reason.
    """

    lanes: int
    rates: Mapping[int, float]
    limit: str | None = None

    def __str__(self) -> str:
        tried = ", ".join(f"{lanes}: {rate:.3g}" for lanes, rate in self.rates.items())
        found = f"device-steps per second by lanes: {tried}" if tried else "no trial"
        return f"{found}; {self.limit}" if self.limit else found


Products = Literal["torch", "onednn", "torch_float32", "onednn_float32"]
"""What multiplies frozen layers on a CPU, see models/products.py."""


class Fleet(Protocol):
    """Where devices run. The in-process fleet and the Ray fleet give bitwise-equal results."""

    lanes: int
    """devices that compute side by side; known once it is open"""
    calibration: Calibration | None
    """what the trial of `fleet.lanes: auto` found; None if lanes are set, and before it is open"""
    device: str
    """type of device that computes: cpu, cuda, or 'cpu and cuda'; known once it is open, '' before"""
    backend_choice: tuple[str, str] | None
    """the backend that holds base weights, and why; None without a base; known once it is open"""
    products: Products | None
    """what multiplies frozen layers on CPUs (`fleet.products`); known once it is open, None where nothing does"""
    base: str
    """fingerprint of the base weights; known once it is open, '' where nothing is frozen"""

    def setup(self) -> SetupResult:
        """Start what is needed and run the setup phase, which does nothing for methods without one."""

    @property
    def states(self) -> States:
        """Each device's current state: the newest one whose update the server accepted."""

    def begin_round(self, plan: RoundPlan) -> None:
        """Start training this round in the background, if the fleet can. Call `run_round` with the same plan next.

        Until then `digest`, `save` and `states` describe the rounds before this one.
        """

    def run_round(self, plan: RoundPlan) -> RoundResult:
        """Train the cohort. The fleet fills in `plan.states`."""

    def evaluate(self, round_: int) -> EvaluationResult:
        """Score the global model, and each device's own model, on test data."""

    def adapter(self) -> Tensors:
        """The global model: current shared tensors, and the initial values of personal ones."""

    def restore(self, path: Path, states: States) -> SetupResult:
        """Start from a checkpoint instead of calling `setup`.

        path: the server's state, a file that `save` wrote. states: the state each device continues from.
        """

    def save(self, path: Path) -> Callable[[], str]:
        """Capture the server's current state. The returned function writes it to the file and returns the file's
        digest.

        It may be called from any thread while rounds go on.
        """

    def digest(self) -> str:
        """Digest of the current shared tensors."""

    def close(self) -> None:
        """Stop what `setup` or `restore` started. May be called twice."""
