"""A backbone with its adapter, without any of its numbers, so that a run of any size is planned in a second.

The architecture is built from its config on torch's meta device, and then dressed in fake tensors, which have shape,
type and device, take the ways through PyTorch that real ones take there, and no memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from fibec_ray.errors import FibecError, ModelError
from fibec_ray.model_types import Batch, Outputs
from fibec_ray.models.architecture import SUPPORTED, reason_of
from fibec_ray.models.backbone import from_config
from fibec_ray.models.kernels import speed_up
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.responses import ResponseTokens

T = TypeVar("T")
LOOKS_AT_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


class Outline(TorchModel):
    """A TorchModel of fake tensors on a CPU. Everything that looks at values raises; `within` is where it can run.

    longest_answer: tokens of every response, where answers are texts. num_blocks: None: as many as the backbone has.
    Raises ModelError as a TorchModel does.
    """

    def __init__(self, spec: ModelSpec, longest_answer: int = 0, num_blocks: int | None = None):
        self._longest_answer = longest_answer
        with torch.device("meta"):
            base = from_config(spec.backbone, spec.num_classes, num_blocks)
            super().__init__(spec, base, "meta")
        self.device = torch.device("cpu")
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)  # some kinds keep token numbers outside their buffers
        with self._fake:
            for module in (self.peft_model, *([self._head] if self._head is not None else [])):
                _dress(module)
            self._words = None if spec.label_words is None else torch.zeros(spec.num_classes, dtype=torch.int64)
        speed_up(self.peft_model, self.device)
        self.trainable, self.server_only_values = self._collect(), self._collect_server_only()

    @property
    def config(self) -> Any:
        """transformers' own, of the base."""
        return self._base.config

    def within(self, work: Callable[[], T]) -> T:
        """Does the work where tensors that it makes are fake, too. Raises ModelError for an architecture that looks at
        their values."""
        try:
            with self._fake, without_torch_s_log():
                return work()
        except LOOKS_AT_VALUES as error:
            raise ModelError(
                f"backbone: what {self.config.model_type} computes depends on values in a way that cannot be planned; "
                f"{SUPPORTED}"
            ) from error

    def batch(self, num_samples: int, length: int) -> Batch:
        """Samples of so many tokens; to be called `within`."""
        tokens, one_each = torch.zeros(num_samples, length, dtype=torch.int64), torch.zeros(num_samples).long()
        return Batch(tokens, torch.ones_like(tokens), one_each, one_each)

    def _outputs(self, batch: Batch, embeds: Tensor | None, hidden: bool) -> Outputs:
        with self._computing():
            return super()._outputs(batch, embeds, hidden)

    def derive(
        self, values: Sequence[Tensor], tensors: Sequence[Tensor], cotangents: Any, retain_graph: bool
    ) -> Sequence[Tensor | None]:
        with self._computing():
            return super().derive(values, tensors, cotangents, retain_graph)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Raises ModelError for a model that cannot compute a batch, or its gradients: what is found out here has cost
        no round yet. An architecture may need inputs that are not text, and a config may have sizes that do not fit."""
        try:
            yield
        except (*LOOKS_AT_VALUES, FibecError):
            raise
        except Exception as error:  # whatever an architecture raises
            raise ModelError(
                f"backbone: {self.config.model_type} cannot compute a batch of text ({reason_of(error)}); check the "
                f"sizes in its config; {SUPPORTED}"
            ) from error

    def _response(self, batch: Batch) -> ResponseTokens:
        num_samples, count = len(batch.input_ids), self._answer_in(batch)
        sample = torch.arange(num_samples).repeat_interleave(count, output_size=num_samples * count)
        column = torch.arange(count).repeat(num_samples)
        return ResponseTokens(column, sample, column, torch.full((num_samples,), count), count)

    def _num_answers(self, batch: Batch) -> int:
        return len(batch.input_ids) * self._answer_in(batch) if self._responds else 0

    def _answer_in(self, batch: Batch) -> int:
        """Tokens of each sample's response."""
        return max(1, min(self._longest_answer, batch.input_ids.shape[1] - 1))

    def frozen(self) -> dict[str, Tensor]:
        """The base's parameters that stand still, tied ones once."""
        return {name: p for name, p in self.peft_model.named_parameters() if not p.requires_grad}

    def forward_flops(self, num_samples: int, length: int) -> float:
        """Of one pass without gradients; length: tokens of the longest sample."""
        run = length + self._attached.num_prompts
        return num_samples * run * self._cost.flops_per_token(run + self._attached.num_prefixes)

    @property
    def answer_flops(self) -> float:
        """Of a pass, for each token of a response; 0 where answers are classes."""
        return self._cost.head if self._responds else 0.0

    @property
    def backward_share(self) -> float:
        """A backward pass in units of a forward one, as `cost` has it."""
        return 2.0 if self._peft.trains_base else 1.0


@contextmanager
def without_torch_s_log() -> Iterator[None]:
    """torch logs a traceback for each operation that fails on fake tensors; the error says the same."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _dress(module: nn.Module) -> None:
    """Puts fake tensors in place of the meta ones; what was one tensor stays one."""
    made: dict[int, Any] = {}
    for child in module.modules():
        for tensors in (child._parameters, child._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    is_parameter = isinstance(old, nn.Parameter)
                    made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
                tensors[name] = made[id(old)]
