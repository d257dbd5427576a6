"""The models that backbones build, and what a run wants of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from torch import Tensor, nn

from fibec_ray.answers import Answers
from fibec_ray.model_types import Batch, LocalModel
from fibec_ray.parts.peft.base import Peft
from fibec_ray.types import Products

T = TypeVar("T")


@dataclass(frozen=True)
class ModelRequest:
    """What a run wants of a model, beside the backbone's own settings."""

    peft: Peft
    answers: Answers
    """what the model gives for a sample"""
    seed: int = 0
    """of the initial values, which are the same in every process"""
    shape: tuple[int, ...] = ()
    """of a sample of numbers; () for others"""
    products: Products | Literal["auto"] = "auto"
    """how frozen layers multiply on a CPU; auto: this processor's default"""
    computes_on: Literal["cpu", "cuda"] = "cpu"
    """device type of an outline, which computes nothing; a real model is given its device instead"""


class BuiltModel(LocalModel, Protocol):
    """A model with a torch module of its own."""

    @property
    def module(self) -> nn.Module:
        """The torch module with all weights, except those of our own head."""

    @property
    def head(self) -> nn.Module | None:
        """Our own classifier on the mean of the last hidden states; None for other heads."""


class SizedModel(BuiltModel, Protocol):
    """A model from which a run is planned. It has sizes and costs, and its values are not used."""

    @property
    def blocks_are_alike(self) -> bool:
        """True if each further block adds the same memory."""

    @property
    def vocab_size(self) -> int:
        """Tokens of its vocabulary; 0 if it reads no text."""

    @property
    def backward_share(self) -> float:
        """Cost of a backward pass relative to a forward pass."""

    @property
    def answer_flops(self) -> float:
        """Additional flops of a pass per token of a response; 0 unless answers are texts."""

    @property
    def server_only_values(self) -> Mapping[str, nn.Parameter]:
        """Tensors that only the server changes, by name."""

    def frozen(self) -> dict[str, Tensor]:
        """The frozen parameters of the base; tied ones appear once."""

    def within(self, work: Callable[[], T]) -> T:
        """Run work on the model and on batches that it makes there. Raises ModelError if it cannot be measured."""

    def batch(self, num_samples: int, length: int) -> Batch:
        """A batch of samples with `length` tokens each; call it `within`."""

    def pass_flops(self, num_samples: int, length: int) -> float:
        """Flops of one pass without gradients. length: tokens of the longest sample."""

    def largest_product(self, max_length: int) -> tuple[int, int, int]:
        """Rows, inputs and outputs of the largest matrix product for one sample of medium length.

        max_length: most tokens of a sample.
        """
