"""A backbone with its adapter but without values, so that a run of any size is planned in seconds.

The architecture is built from its config on torch's meta device. Its tensors are then replaced by fake ones, which have
shape, type and device, take the same code paths as real ones, and need no memory.
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
    unset_fake_temporarily,
)

from fibec_ray.errors import FibecError, ModelError
from fibec_ray.model_types import Batch, BatchForm, Outputs
from fibec_ray.models.architecture import SUPPORTED, reason_of
from fibec_ray.models.backbone import from_config
from fibec_ray.models.inputs import Size
from fibec_ray.models.kernels import speed_up
from fibec_ray.models.torch_model import ModelSpec, TorchModel

T = TypeVar("T")
DEPENDS_ON_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


class Outline(TorchModel):
    """A TorchModel of fake tensors on a CPU. Code that depends on values raises; run it with `within`.

    Dtypes and kernels are those of a model on `spec.computes_on`. Fake tensors on a GPU would need CUDA's library.

    form: of batches. num_blocks: None: as in the backbone. Raises ModelError like a TorchModel.
    """

    def __init__(self, spec: ModelSpec, form: BatchForm, num_blocks: int | None = None):
        self._form, self._computes_on = form, spec.computes_on
        self._sizes: dict[int, Size] = {}
        """of one sample, by its length"""
        with torch.device("meta"):
            base = from_config(spec.backbone, spec.answers.num_scores, num_blocks, spec.computes_on)
            super().__init__(spec, base, "meta")
        self.device = torch.device("cpu")
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)  # some kinds store token numbers outside their buffers
        with self._fake:
            for module in (self.peft_model, *([self.head] if self.head is not None else [])):
                _make_fake(module)
        speed_up(self.peft_model, torch.device(spec.computes_on))
        self.trainable, self.server_only_values = self._collect(), self._collect_server_only()

    @property
    def computes_on(self) -> str:
        """Device type whose dtypes and kernels the outline has."""
        return self._computes_on

    @property
    def config(self) -> Any:
        """transformers' config of the base."""
        return self._base.config

    def within(self, work: Callable[[], T]) -> T:
        """Run the work so that the tensors it creates are fake too. Raises ModelError if the architecture depends
        on values.
        """
        try:
            with self._fake, without_torch_log():
                return work()
        except DEPENDS_ON_VALUES as error:
            raise ModelError(
                f"backbone: computations of {self.config.model_type} depend on values in a way that cannot be "
                f"planned; {SUPPORTED}"
            ) from error

    def batch(self, num_samples: int, length: int) -> Batch:
        """A made-up batch. Its tensors are real, because code locates answers by their values."""
        with unset_fake_temporarily():
            return self._form.batch(num_samples, length)

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
        """Raise ModelError for a model that cannot compute a batch or its gradients, before the run starts.

        An architecture may need inputs other than text, and a config may have sizes that do not fit.
        """
        try:
            yield
        except (*DEPENDS_ON_VALUES, FibecError):
            raise
        except Exception as error:  # architectures raise all kinds of errors
            raise ModelError(
                f"backbone: {self.config.model_type} cannot compute a batch of text ({reason_of(error)}); check the "
                f"sizes in its config; {SUPPORTED}"
            ) from error

    def frozen(self) -> dict[str, Tensor]:
        """The frozen parameters of the base; tied ones appear once."""
        return {name: p for name, p in self.peft_model.named_parameters() if not p.requires_grad}

    @property
    def blocks_are_alike(self) -> bool:
        """True: architectures with different blocks are not supported."""
        return True

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary."""
        return int(self.config.vocab_size)

    def largest_product(self, max_length: int) -> tuple[int, int, int]:
        """The first product of a block's feed-forward layers."""
        inside = self.config.hidden_size
        return min(32, max_length), inside, getattr(self.config, "intermediate_size", None) or 4 * inside

    def pass_flops(self, num_samples: int, length: int) -> float:
        """Flops of one pass without gradients. length: tokens of the longest sample."""
        if length not in self._sizes:
            self._sizes[length] = self._inputs.size(self._form.batch(1, length))
        return num_samples * self._readout.num_forwards * self._flops_of(self._sizes[length])

    @property
    def answer_flops(self) -> float:
        """Additional flops of a pass per token of a response; 0 unless answers are texts."""
        return self._readout.num_forwards * self._cost.head if self._readout.predicts_tokens else 0.0

    @property
    def backward_share(self) -> float:
        """Cost of a backward pass relative to a pass without gradients, as in `cost`."""
        return (2.0 if self._peft.trains_base else 1.0) / self._readout.num_forwards


@contextmanager
def without_torch_log() -> Iterator[None]:
    """Silence torch's log of operations that fail on fake tensors; the error has the same information."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _make_fake(module: nn.Module) -> None:
    """Replace meta tensors by fake ones; shared tensors stay shared."""
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
