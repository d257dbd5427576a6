"""What training code sees of a model: batches, shards, outputs, and the protocols of models.

Shapes: B samples of a batch, S tokens, H hidden size, L transformer blocks, C classes, n samples of a shard; R tokens
of all responses of a batch, V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fibec_ray.batch_facts import NO_LABEL as NO_LABEL
from fibec_ray.batch_facts import BatchFacts, answers_in, padded_masks
from fibec_ray.curvature.per_sample import Caught
from fibec_ray.likelihoods import Categorical, Likelihood
from fibec_ray.responses import ResponseTokens
from fibec_ray.tensors import Tensors

HEAD = "head"
"""The first word in the names of the tensors of our own classification head."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples: their inputs by name, and their labels.

    Texts have the inputs
        input_ids: (B, S) int64, right-padded to the longest;
        attention_mask: (B, S) int64, 1 for real tokens;
        answer_at: (B,) int64, the position whose output predicts the answer (the mask token, or the prompt's last
            token); 0 with a classification head. Where answers are texts, all real tokens behind it are the response;
        token_type_ids: (B, S) int64, 0 for padding; only if the tokenizer and the model have token types.
    Two texts per sample have (B, 2, S) and (B, 2) instead. Encoder-decoders read a source and write a target:
        input_ids, attention_mask: (B, S) int64, the source;
        target_ids, target_mask: (B, T) int64, the target; T differs from S, so that states say which of the two they
            belong to.
    Images and points have
        features: (B, *shape) float32.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    """(B,) int64 class ids; float32 values in a regression; (B, S) int64 tags of tokens, NO_LABEL for tokens without
    one"""
    known: BatchFacts | None = None
    """facts found before the batch left the host; None: not found yet"""

    @cached_property
    def padded(self) -> frozenset[str]:
        """The masks, by input name, that have a 0. Read from the tensors unless known."""
        return padded_masks(self.inputs) if self.known is None else self.known.padded

    @cached_property
    def answers(self) -> ResponseTokens | None:
        """Tags, targets or response tokens, see `BatchFacts`. Read from the tensors unless known."""
        return answers_in(self.inputs, self.labels) if self.known is None else self.known.answers

    @property
    def facts(self) -> BatchFacts:
        """The batch's facts, found now if they are not known yet."""
        return BatchFacts(self.padded, self.answers)

    @property
    def num_samples(self) -> int:
        """B."""
        return len(self.labels)

    @property
    def rows_each(self) -> int:
        """Rows of tokens per sample: 2 with two texts per sample, else 1."""
        ids = self.inputs.get("input_ids")
        return 1 if ids is None else math.prod(ids.shape[1:-1])

    @property
    def length(self) -> int:
        """Positions per sample, padding included: S (of the source), or 2 S; 1 where samples have no length."""
        ids = self.inputs.get("input_ids")
        return 1 if ids is None else math.prod(ids.shape[1:])

    def real(self, states: Tensor) -> Tensor:
        """(B, S, 1) int64, 1 at real positions and 0 at padding, on the device of the states (B, S, H)."""
        mask, target = self.inputs.get("attention_mask"), self.inputs.get("target_mask")
        if target is not None and target.shape[1] == states.shape[1]:
            mask = target
        if mask is None:
            return torch.ones(*states.shape[:2], 1, dtype=torch.int64, device=states.device)
        return mask.to(states.device).flatten(1).unsqueeze(2)

    def to(self, device: torch.device) -> Batch:
        """The batch on a torch device, with all that a pass needs; itself if it is there already.

        A pass over a batch on the model's device copies nothing to or from the host and never waits for the device.
        """
        if all(value.device == device for value in (*self.inputs.values(), self.labels)):
            return self
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return Batch(inputs, self.labels.to(device), self.facts.to(device))


class BatchForm(Hashable, Protocol):
    """What batches of an encoded set look like, without its values. Run plans measure models with it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's `features`; () for texts."""

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest response; 0 unless answers are texts."""

    def batch(self, num_samples: int, length: int) -> Batch:
        """A made-up batch with the set's inputs and no padding. length: of each sample, as in `Batch.length`."""


class Shard(Protocol):
    """One device's data (or any other rows of an encoded set)."""

    @property
    def num_samples(self) -> int:
        """Number of rows."""

    @property
    def labels(self) -> Tensor:
        """(n,) labels, as in `Batch`."""

    @property
    def lengths(self) -> Tensor:
        """(n,) int64 tokens per sample; 0 where samples are not text."""

    @property
    def true_difficulty(self) -> Tensor | None:
        """(n,) float32 true difficulty; None where the task does not know it."""

    def batch(self, rows: Tensor) -> Batch:
        """The samples at `rows` ((B,) int64, positions within the shard), padded to the longest of them."""

    def shortened(self, max_length: int) -> Shard:
        """The same samples cut to `max_length` tokens: texts lose their ends, the longest first; template, mask and
        special tokens stay, and one token of each text."""


class LateScores(ABC):
    """Scores (R, V) that are computed on demand, because they are large."""

    @abstractmethod
    def compute(self) -> Tensor:
        """All scores, (R, V) float32, in the graph."""

    @abstractmethod
    def losses(self, targets: Tensor) -> Tensor:
        """(R,) cross-entropies of the targets (R,), without holding all scores at once."""

    @abstractmethod
    def split(self, sizes: Sequence[int]) -> Sequence[LateScores]:
        """The first `sizes[0]` rows, the next ones, and so on."""

    @abstractmethod
    def argmax(self, dim: int) -> Tensor:
        """(R,) the best word of each row, as `Tensor.argmax(1)`, without holding all scores at once."""


@dataclass(frozen=True)
class Outputs:
    """Result of a forward pass: losses, scores and, on request, the states of each block."""

    losses: Tensor
    """(B,) float32, one loss per sample"""
    given: Tensor | LateScores
    """the scores, or an object that computes them"""
    hidden: tuple[Tensor, ...] = ()
    """L tensors (B, S, H), the output of each block; empty unless asked for"""
    likelihood: Likelihood = Categorical()
    """the distribution that the scores are parameters of"""
    last: Tensor | None = None
    """(B, S, H) what a head sees: the last block's output, after the final norm if there is one; with `hidden`"""

    @cached_property
    def scores(self) -> Tensor:
        """(B, C) float32, or (R, V) with the likelihood `Tokens`. In the graph."""
        return self.given.compute() if isinstance(self.given, LateScores) else self.given

    @property
    def predicted(self) -> Tensor:
        """(B, ...) the likeliest labels: class ids, values, or whatever else the likelihood predicts."""
        given: Any = self.given  # late scores have `argmax`, which is all that `Tokens` needs
        return self.likelihood.predicted(given)


@dataclass
class Work:
    """What a device's model computed since the last reset; the basis of simulated time."""

    flops: float = 0.0
    num_tokens: int = 0
    """samples, where they are not text"""
    backward_flops: float = 0.0
    """those of `flops` that were backward passes"""

    def add(self, other: Work) -> None:
        """Add the counts of other work."""
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
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The trainable parameters by name."""

    @property
    def holders(self) -> Mapping[str, nn.Module]:
        """The modules that hold trainable tensors, by the common prefix of these tensors' names."""

    @property
    def server_only(self) -> Collection[str]:
        """Names of tensors that `load` and `read` handle too, but that only the server changes."""

    @property
    def adapter_config(self) -> dict[str, Any]:
        """Contents of the saved adapter's adapter_config.json; of config.json where the whole model is trained."""

    def layer_of(self, name: str) -> int | None:
        """The block that a trainable tensor belongs to; None for the head and for prompts (always shared)."""

    def is_adapter(self, name: str) -> bool:
        """False for the tensors of our own head; True for PEFT's, and for all of a model that is trained whole."""

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Copies values into the tensors that are named, trainable or server-only."""

    def read(self, names: Collection[str] | None = None) -> Tensors:
        """Detached CPU copies of the trainable and server-only tensors (all, or those named)."""

    def set_rank(self, rank: int | None) -> None:
        """Compute with an adapter of this rank, as a device with less room does; None: with the server's rank."""

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        """Losses and class scores. embeds: (B, S, H) in place of the token embeddings. hidden: return block outputs."""

    def per_sample_grads(
        self, batch: Batch, names: Collection[str] = (), embeds: Tensor | None = None, hidden: bool = False
    ) -> tuple[Outputs, Caught]:
        """`forward` with a graph for `grad`; and inputs and outputs of the modules that hold the named tensors.

        Code that gets its gradients in this way can run for several devices at once.
        """

    def grad(
        self, value: Tensor, tensors: Sequence[Tensor], cotangent: Tensor | None = None, retain_graph: bool = False
    ) -> list[Tensor | None]:
        """Gradients of a scalar, or of <value, cotangent>, after `per_sample_grads`. None: the tensor has no influence.

        tensors: trainable ones, embeddings that were given, or `Caught.tensors`.
        """

    def embed(self, batch: Batch) -> Tensor:
        """(B, S, H) token embeddings, before positions are added."""

    def train(self, mode: bool) -> None:
        """Switches dropout on or off."""


@dataclass(frozen=True)
class LaneBatch:
    """One device's share of a joint pass: its values of all trainable tensors, and its samples."""

    values: Mapping[str, Tensor]
    batch: Batch
    embeds: Tensor | None = None
    """(B, S, H) in place of the token embeddings"""


class LanedModel(LocalModel, Protocol):
    """A model that can compute for several devices in one pass, each with its own values of the trainable tensors."""

    @property
    def gains_from_lanes(self) -> bool:
        """False where one device at a time is known to be as fast."""

    def obstacle_to_lanes(self) -> str | None:
        """Why the model cannot use lanes; None if it can."""

    def cost(self, batch: Batch, graph: bool) -> Work:
        """Count the work of a pass over the batch, padding included. graph: with its backward pass."""

    def derive(
        self, values: Sequence[Tensor], tensors: Sequence[Tensor], cotangents: Any, retain_graph: bool
    ) -> Sequence[Tensor | None]:
        """Gradients of the sum of value times cotangent (None: 1) with respect to the tensors. None: no influence."""

    def joined(self, batches: Sequence[Batch]) -> Batch:
        """The samples of all batches in one, each input padded to its longest."""

    def stacked(
        self, values: Mapping[str, Tensor], batch: Batch, names: Collection[str] = (), hidden: bool = False
    ) -> tuple[Outputs, Caught]:
        """One pass over the samples of D lanes, the same number of each. values: (D, ...) by name.

        Returns the outputs of all samples, lane by lane, and what `per_sample_grads` records for them.
        """

    def together(
        self, lanes: Sequence[LaneBatch], names: Collection[str] = (), hidden: bool = False
    ) -> tuple[list[Outputs], Caught]:
        """One pass over the batches of all lanes.

        Returns each lane's outputs, and what `per_sample_grads` records for all samples, lane by lane.
        """
