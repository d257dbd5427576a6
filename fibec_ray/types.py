"""What travels between the layers: plans down, updates and reports up, and the seams `LocalModel`, `Shard` and `Fleet`.

Shapes: B samples of a batch, S tokens, H hidden size, L transformer blocks, C classes, n samples of a shard; R tokens
of all responses of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fibec_ray.per_sample import Caught
from fibec_ray.reports import DeviceReport
from fibec_ray.responses import ResponseTokens
from fibec_ray.tensors import Tensors, under_prefix, with_prefix

HEAD = "head"
"""The first word in the names of the tensors of our own classification head."""

OPENING_ROUND = -1
"""The round number under which the initialisation phase is planned, seeded and logged."""


@dataclass(frozen=True)
class Batch:
    """B samples, right-padded to S tokens."""

    input_ids: Tensor
    """(B, S) int64"""
    attention_mask: Tensor
    """(B, S) int64, 1 for real tokens"""
    labels: Tensor
    """(B,) int64 class ids; float32 values in a regression"""
    answer_at: Tensor
    """(B,) int64: the position whose output predicts the answer (the mask token, or the prompt's last token); 0 with
    a classification head. Where answers are texts, all real tokens behind it are the response"""


@dataclass(frozen=True)
class DenseBatch(Batch):
    """B samples that are no text. To what knows tokens alone, each of them is one token, whose id says nothing."""

    features: Tensor
    """(B, *shape) float32"""


class Shard(Protocol):
    """One device's data (or any other rows of an encoded set)."""

    @property
    def num_samples(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """(n,) as in `Batch`"""
        ...

    @property
    def lengths(self) -> Tensor:
        """(n,) int64, tokens per sample; 0 where samples are no text"""
        ...

    @property
    def grades(self) -> Tensor | None:
        """(n,) float32 true difficulty, known for the embedded task only"""
        ...

    def batch(self, rows: Tensor) -> Batch:
        """The samples at `rows` ((B,) int64, positions within the shard), padded to the longest of them."""
        ...

    def shortened(self, max_length: int) -> Shard:
        """The same samples cut to `max_length` tokens: texts lose their ends, the longest first; template, mask and
        special tokens stay, and one token of each text."""
        ...


Likelihood = Literal["categorical", "normal", "tokens"]
"""What scores are parameters of, whose negative log likelihood is the loss: classes with probabilities softmax(scores)
(cross-entropy), or a real value, normal around its one score with variance 1 (half the squared error, but for a
constant), or the tokens of a text, each with probabilities of its own (the mean of their cross-entropies)."""


@dataclass(frozen=True)
class Outputs:
    losses: Tensor
    """(B,) float32, one loss per sample"""
    scores: Tensor
    """(B, C) float32; C = 1 in a regression; (R, V) where answers are texts"""
    hidden: tuple[Tensor, ...] = ()
    """L tensors (B, S, H), the output of each block; empty unless asked for"""
    likelihood: Likelihood = "categorical"
    response: ResponseTokens | None = None
    """of the likelihood "tokens" alone"""

    @property
    def predicted(self) -> Tensor:
        """(B,) the likeliest class, or value; of a text 1 where greedy decoding gives it to the letter, else 0."""
        if self.response is not None:
            return self.response.exact(self.scores)
        return self.scores[:, 0] if self.likelihood == "normal" else self.scores.argmax(1)


@dataclass
class Work:
    """What a device's model computed since the last reset; the basis of simulated time."""

    flops: float = 0.0
    num_tokens: int = 0
    """samples, where they are no text"""
    backward_flops: float = 0.0
    """those of `flops` that were backward passes"""

    def add(self, other: Work) -> None:
        self.flops += other.flops
        self.num_tokens += other.num_tokens
        self.backward_flops += other.backward_flops


class LocalModel(Protocol):
    """A backbone with one adapter (and maybe a head) attached, or trained whole; lent to one device at a time.

    Names of trainable tensors are those of a saved PEFT adapter, where it holds what is trained (an encoder of prompts
    is trained, and saved as the prompts that it makes); those of our own head start with `head.`.
    """

    num_layers: int
    work: Work

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]: ...

    @property
    def holders(self) -> Mapping[str, nn.Module]:
        """The modules that hold trainable tensors, by the common prefix of these tensors' names."""
        ...

    @property
    def carried(self) -> Collection[str]:
        """Names of tensors that `load` and `read` know too, but that no device trains: the server alone moves them."""
        ...

    @property
    def adapter_config(self) -> dict[str, Any]:
        """What adapter_config.json of the saved adapter says, as plain values; config.json of what is trained whole."""
        ...

    def layer_of(self, name: str) -> int | None:
        """The block that a trainable tensor belongs to; None for the head and for prompts (always shared)."""
        ...

    def is_adapter(self, name: str) -> bool:
        """True for the tensors that PEFT added (of what is trained whole, for all), False for our own head."""
        ...

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Copies values into the tensors that are named, trainable or carried."""
        ...

    def read(self, names: Collection[str] | None = None) -> Tensors:
        """Detached CPU copies of the trainable and carried tensors (all, or those named)."""
        ...

    def set_rank(self, rank: int | None) -> None:
        """Computes as a device whose adapter has this rank does; None: as the server's."""
        ...

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        """Losses and class scores. embeds: (B, S, H) in place of the token embeddings. hidden: return block outputs."""
        ...

    def watched(
        self, batch: Batch, names: Collection[str] = (), embeds: Tensor | None = None, hidden: bool = False
    ) -> tuple[Outputs, Caught]:
        """As `forward`, with a graph, for `grad`; and what the holders of the named tensors saw.

        Work that asks for its gradients in this way can be done for several devices at once.
        """
        ...

    def grad(
        self, value: Tensor, tensors: Sequence[Tensor], cotangent: Tensor | None = None, retain_graph: bool = False
    ) -> list[Tensor | None]:
        """Gradients of what `watched` led to: of a scalar, or of <value, cotangent>, in the tensors (None: in no way).

        tensors: trainable ones, embeddings that were given, or `Caught.tensors`.
        """
        ...

    def embed(self, batch: Batch) -> Tensor:
        """(B, S, H) token embeddings, before positions are added."""
        ...

    def train(self, mode: bool) -> None:
        """Switches dropout on or off."""
        ...


@dataclass(frozen=True)
class LaneBatch:
    """What one lane of a joint pass brings: its values of all trainable tensors, and its samples."""

    values: Mapping[str, Tensor]
    batch: Batch
    embeds: Tensor | None = None
    """(B, S, H) in place of the token embeddings"""


class LanedModel(LocalModel, Protocol):
    """A model that can compute for several devices in one pass, each with its own values of the trainable tensors."""

    @property
    def gains_from_lanes(self) -> bool:
        """False where it is known that one device at a time is as fast."""
        ...

    def obstacle_to_lanes(self) -> str | None:
        """Why it cannot; None if it can."""
        ...

    def cost(self, batch: Batch, graph: bool) -> Work:
        """What a pass over the batch computes, padding included. graph: and the backward pass that goes with it."""
        ...

    def derive(
        self, values: Sequence[Tensor], tensors: Sequence[Tensor], cotangents: Any, retain_graph: bool
    ) -> Sequence[Tensor | None]:
        """Gradients of the sum of the values, each times its cotangent (None: 1), in the tensors (None: in no way)."""
        ...

    def together(
        self, lanes: Sequence[LaneBatch], names: Collection[str] = (), hidden: bool = False
    ) -> tuple[list[Outputs], Caught]:
        """One pass over the batches of all lanes: each lane's outputs, and what the holders of the named tensors saw of
        all samples, lane by lane."""
        ...


@dataclass(frozen=True)
class RoundPlan:
    """Everything about a round that is the same for all of its devices."""

    round: int
    rounds: int
    cohort: tuple[int, ...]
    learning_rate: float


@dataclass(frozen=True)
class Broadcast:
    """What the server sends to every device of a round."""

    round: int
    shared: Tensors
    hint: Tensors = field(default_factory=dict)
    """what the objective wants devices to know (a control variate ...)"""


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
        memory = under_prefix("memory", tensors)
        axes = dict.fromkeys(name.split("/", 1)[0] for name in memory)
        return DeviceState(under_prefix("personal", tensors), {axis: under_prefix(axis, memory) for axis in axes})


@dataclass(frozen=True)
class ClientUpdate:
    """What a device sends up: delta = new - received over the shared names, and what its method's parts add."""

    device: int
    num_samples: int
    num_steps: int
    delta: Tensors
    """on the server's scale; tensors of a lower rank than the server's lack the entries that the device does not have,
    which the server fills with zeros before an aggregator sees them"""
    evidence: Tensors = field(default_factory=dict)
    rank: int | None = None
    """of the device's adapter, where devices differ"""
    learning_rate: float = 0.0
    """of its steps"""
    fault: str | None = None
    """why the device sends nothing, if its training came to nothing that could be averaged"""


@dataclass(frozen=True)
class LayerScores:
    """What a device has to say about the transformer blocks, if it was asked."""

    sensitivity: Tensor | None = None
    """(L,) float32"""
    keep_ratio: float | None = None
    """share of the blocks that the spectrum of its loss asks to share"""

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
    """What the trainable tensors are, as every process of a fleet has them."""

    layers: Mapping[str, int | None]
    """the block of each trainable or carried tensor; None: head or prompts"""
    num_layers: int
    adapter_config: Mapping[str, Any]
    """as `LocalModel` has it"""
    carried: frozenset[str] = frozenset()
    """those that no device trains"""


@dataclass(frozen=True)
class OpenResult:
    """The initialisation phase: who reported what, and what the server decided to share."""

    reports: list[DeviceReport]
    shared_names: frozenset[str]
    layout: Layout
    layer_scores: Tensor | None
    """(L,) float32, averaged over devices with weights n_k"""
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
        """False if devices train heads of their own: the server's then fits no body, and its score means nothing."""
        heads = {name for name, layer in self.layout.layers.items() if layer is None}
        return self.frozen_personal or heads <= self.shared_names


@dataclass(frozen=True)
class RoundResult:
    """reports: one for each device that finished, in cohort order; quarantined ones say so. lost: devices whose update
    never came."""

    reports: list[DeviceReport]
    lost: tuple[int, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """Evaluation of some rows: the true and predicted class and the loss of each."""

    labels: Tensor
    """(n,) int64 class ids; float32 values in a regression; 1 where answers are texts"""
    predicted: Tensor
    """(n,) the same; 1 where a text is given to the letter"""
    losses: Tensor
    """(n,) float32"""
    num_tokens: Tensor | None = None
    """(n,) int64 tokens that each loss is the mean of; None where answers are no texts"""

    @staticmethod
    def join(parts: list[Predictions]) -> Predictions:
        if not parts:
            empty = torch.empty(0, dtype=torch.int64)
            return Predictions(empty, empty, torch.empty(0))
        return Predictions(
            torch.cat([part.labels for part in parts]),
            torch.cat([part.predicted for part in parts]),
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


class Fleet(Protocol):
    """Where devices run. The in-process fleet and the Ray fleet give bitwise-equal results."""

    lanes: int
    """devices that compute side by side; known once it is open"""
    holding: tuple[str, str] | None
    """the backend that holds base weights, and why; None without a base; known once it is open"""
    base: str
    """fingerprint of the base weights; known once it is open, '' where nothing is frozen"""

    def open(self) -> OpenResult:
        """Starts what is needed and runs the initialisation phase (a no-op for methods without one)."""
        ...

    def run_round(self, plan: RoundPlan) -> RoundResult: ...

    def evaluate(self, round_: int) -> EvaluationResult: ...

    def adapter(self) -> Tensors:
        """The global model: shared tensors as they are now, personal ones as they were at the start."""
        ...

    def restore(self, path: Path) -> OpenResult:
        """In place of `open`: starts what is needed, and gives the server the state in a file that `save` left."""
        ...

    def save(self, path: Path) -> Callable[[], str]:
        """Takes the server's state as it is now. The call that comes back writes it, and may be made from any thread
        while rounds go on; it gives the digest of the file.
        """
        ...

    def digest(self) -> str:
        """Of the shared tensors as they are now."""
        ...

    def close(self) -> None: ...
