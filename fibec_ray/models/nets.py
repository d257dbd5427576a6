"""Small networks that devices train from scratch: their settings, and how they are built."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from fibec_ray.encoder import Encoder, Reads
from fibec_ray.errors import ModelError
from fibec_ray.model_types import BatchForm
from fibec_ray.models.base import AnyBackbone, check_alike
from fibec_ray.models.built import BuiltModel, ModelRequest, SizedModel
from fibec_ray.models.network import Flat, Network, Shape

Activation = Literal["tanh", "relu"]


class Net(AnyBackbone, frozen=True, extra="forbid", allow_inf_nan=False):
    """A network from scratch instead of a pretrained backbone; `method.peft` is `full`."""

    kind: str

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of weight layers before the output layer."""

    @abstractmethod
    def check_shape(self, shape: Shape) -> None:
        """Raise ModelError if samples of this shape do not fit."""

    @abstractmethod
    def network(self, shape: Shape, num_scores: int) -> Network:
        """Make the torch module. Initial values come from torch's global generator."""

    def operator_network(self, shape: Shape) -> Network:
        """Make the torch module whose score is a differential operator (`operator_net.py`). Raises ModelError."""
        raise ModelError(f"{self.title}: its second derivatives are unknown; set backbone to {{kind: mlp}}")

    @property
    def title(self) -> str:
        return f"backbone {self.kind}"

    @property
    def reads(self) -> Reads:
        return "numbers"

    def can_read(self, reads: Reads) -> bool:
        return reads in ("numbers", "image")

    def describe(self, base: str | None, seed: int) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.model_dump(mode="json").items())
        return f"network from scratch ({settings})"

    def fit(self, sets: Sequence[Any], encoder: Encoder, words: Sequence[int] = ()) -> list[Any]:
        check_alike(sets)
        self.check_shape(sets[0].form.shape)
        return list(sets)

    def build(
        self, request: ModelRequest, base: Any = None, device: str = "cpu", beside: int | None = None
    ) -> BuiltModel:
        from fibec_ray.models.net_model import NetModel

        return NetModel(self, request.shape, request.answers, request.seed, device)

    def outline(self, request: ModelRequest, form: BatchForm, num_blocks: int | None = None) -> SizedModel:
        from fibec_ray.models.net_model import NetOutline

        return NetOutline(self, form, request.answers, request.seed)


class Mlp(Net):
    """Dense layers. `hidden: []` is a linear model."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = Field((20, 20), description="sizes of the hidden layers")
    activation: Activation = Field("tanh", description="nonlinearity after each layer")

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Mlp:
        if not self.hidden and self.activation != "tanh":
            raise ValueError("activation has no effect without hidden layers; leave it out")
        return self

    @property
    def num_layers(self) -> int:
        return len(self.hidden)

    def check_shape(self, shape: Shape) -> None:
        """Accepts any shape."""

    def network(self, shape: Shape, num_scores: int) -> Network:
        sizes = [math.prod(shape), *self.hidden]
        layers = [nn.Linear(i, o) for i, o in zip(sizes, sizes[1:], strict=False)]
        return Flat(layers, _activation(self.activation), nn.Linear(sizes[-1], num_scores))

    @property
    def has_laplacian(self) -> bool:
        return self.activation == "tanh"

    def operator_network(self, shape: Shape) -> Network:
        from fibec_ray.models import operator_net

        return operator_net.dense(shape, self.hidden) if self.has_laplacian else super().operator_network(shape)


class Cnn(Net):
    """3 x 3 convolutions, each followed by the activation and 2 x 2 max pooling."""

    kind: Literal["cnn"] = "cnn"
    channels: tuple[PositiveInt, ...] = Field((8, 16), min_length=1, description="filters of each convolution")
    activation: Activation = Field("relu", description="nonlinearity after each layer")

    @property
    def num_layers(self) -> int:
        return len(self.channels)

    def check_shape(self, shape: Shape) -> None:
        if len(shape) != 3:
            raise ModelError("backbone: cnn needs images, but this task has none; set backbone: {kind: mlp}")
        if min(shape[1:]) < 2 ** len(self.channels):
            raise ModelError(
                f"backbone.channels: {len(self.channels)} convolutions halve images of {shape[1]} x {shape[2]} "
                "to nothing; use fewer"
            )

    def network(self, shape: Shape, num_scores: int) -> Network:
        depths = [shape[0], *self.channels]
        layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in zip(depths, depths[1:], strict=False)]
        places = math.prod(side // 2 ** len(layers) for side in shape[1:])
        after = nn.Sequential(_activation(self.activation), nn.MaxPool2d(2))
        return Network(layers, after, nn.Linear(depths[-1] * places, num_scores))


def _activation(name: Activation) -> nn.Module:
    return nn.Tanh() if name == "tanh" else nn.ReLU()
