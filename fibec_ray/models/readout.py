"""Base of the ways to read scores off a transformer's states.

Shapes: B samples, S positions, m virtual tokens before them, H hidden size. With several rows per sample
(`inputs.by_row`), B counts rows in states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fibec_ray.answers import Answers
from fibec_ray.likelihoods import Likelihood
from fibec_ray.model_types import Batch, LateScores
from fibec_ray.models.blocks import BlockOutputs, Hidden
from fibec_ray.models.inputs import Arguments
from fibec_ray.models.masks import Masks


class Run:
    """A forward pass that a readout makes, through the whole model or its body.

    base: the transformers model. arguments: of the model, with virtual tokens. length: S. hidden: keep all states.
    reference: opens a pass over the same batch without the PEFT kind and without a graph. masks: of the base; None: it
    has none.
    """

    def __init__(
        self,
        base: Any,
        blocks: BlockOutputs,
        arguments: Arguments,
        length: int,
        hidden: bool,
        reference: Callable[[], AbstractContextManager[Run]] | None = None,
        masks: Masks | None = None,
    ):
        self._base, self._blocks, self._length, self._hidden = base, blocks, length, hidden
        self._reference, self._masks = reference, masks
        self._arguments = arguments
        self.states = Hidden()
        """outputs of the blocks, if they are wanted"""

    def reference(self) -> AbstractContextManager[Run]:
        """A pass of the frozen base alone."""
        assert self._reference is not None, "a reference has none of its own"
        return self._reference()

    @property
    def device(self) -> torch.device:
        """Where the model gets its arguments."""
        return next(value.device for value in self._arguments.values() if isinstance(value, Tensor))

    def whole(self) -> Any:
        """The output of the model with its head."""
        return self._through(self._base, self._arguments)

    def body(self, module: nn.Module) -> Tensor:
        """(B, S, H) last states of the model without its head."""
        return self.own(self._through(module, self._arguments | no_cache(self._base)).last_hidden_state)

    def _through(self, module: nn.Module, arguments: Arguments) -> Any:
        with self.answered_masks():
            out, self.states = self._blocks.run(module, arguments, self._length, self._hidden)
        return out

    def answered_masks(self) -> AbstractContextManager[None]:
        """A block in which no mask is read back from the device, see `Masks.answered`."""
        return nullcontext() if self._masks is None else self._masks.answered()

    def own(self, states: Tensor) -> Tensor:
        """(B, m + S, ...) -> (B, S, ...): without the virtual tokens in front."""
        return own(states, self._length)


class Read(NamedTuple):
    """What a readout finds: losses (B,), scores, and the distribution that they are parameters of."""

    losses: Tensor
    scores: Tensor | LateScores
    likelihood: Likelihood


class Readout(ABC):
    """A way from a transformer's states to scores and losses. base: the transformers model."""

    head: nn.Module | None = None
    """our own trained module; None: the architecture has all that is needed"""
    predicts_tokens: ClassVar[bool] = False
    """True if the language-model head runs for each token of a response"""
    num_forwards: ClassVar[int] = 1
    """forward passes for a batch; at most one of them has a graph"""

    def __init__(self, base: Any, answers: Answers):
        self._base, self._distribution = base, answers.distribution

    @abstractmethod
    def read(self, run: Run, batch: Batch) -> Read:
        """Run the model and score the batch."""

    def num_predicted(self, batch: Batch) -> int:
        """Tokens whose predictions cost a pass of the language-model head. One per sample costs next to nothing."""
        return 0

    @property
    def _body(self) -> nn.Module:
        """The model without its head."""
        body: nn.Module = getattr(self._base, self._base.base_model_prefix)
        return body

    def _scored(self, scores: Tensor, batch: Batch) -> Read:
        likelihood = self._distribution()
        return Read(likelihood.losses(scores, batch.labels.to(scores.device)), scores, likelihood)


def own(states: Tensor, length: int) -> Tensor:
    """(B, m + S, ...) -> (B, S, ...): without the virtual tokens in front."""
    return states[:, states.shape[1] - length :]


def no_cache(base: Any) -> dict[str, bool]:
    """Arguments with which a model keeps no keys and values for further tokens."""
    return {"use_cache": False} if hasattr(base.config, "use_cache") else {}
