"""Small networks that devices train from scratch: their settings, and how they are built.

Shapes: B samples, C scores.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PositiveInt, model_validator
from torch import Tensor, nn

from fibec_ray.errors import ModelError

Activation = Literal["tanh", "relu"]
Shape = tuple[int, ...]


class Network(nn.Module):
    """Weight layers with the modules after them, and an output layer; all are trained."""

    def __init__(self, layers: Sequence[nn.Module], after: nn.Module, output: nn.Linear):
        super().__init__()
        self.layers, self.after, self.output = nn.ModuleList(layers), after, output

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, *shape) -> scores (B, C), and the output of each layer, flattened to (B, size)."""
        found = []
        for layer in self.layers:
            x = self.after(layer(x))
            found.append(x.flatten(1))
        return self.output(x.flatten(1)), found


class Net(BaseModel, ABC, frozen=True, extra="forbid", allow_inf_nan=False):
    """A network from scratch instead of a pretrained backbone; `method.peft` is `full`."""

    kind: str

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of weight layers before the output layer."""

    @abstractmethod
    def check(self, shape: Shape) -> None:
        """Raise ModelError if samples of this shape do not fit."""

    @abstractmethod
    def build(self, shape: Shape, num_scores: int) -> Network:
        """Build the network. Initial values come from torch's global generator."""


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

    def check(self, shape: Shape) -> None:
        """Accepts any shape."""

    def build(self, shape: Shape, num_scores: int) -> Network:
        sizes = [math.prod(shape), *self.hidden]
        layers = [nn.Linear(i, o) for i, o in zip(sizes, sizes[1:], strict=False)]
        return Flat(layers, _activation(self.activation), nn.Linear(sizes[-1], num_scores))


class Cnn(Net):
    """3 x 3 convolutions, each followed by the activation and 2 x 2 max pooling."""

    kind: Literal["cnn"] = "cnn"
    channels: tuple[PositiveInt, ...] = Field((8, 16), min_length=1, description="filters of each convolution")
    activation: Activation = Field("relu", description="nonlinearity after each layer")

    @property
    def num_layers(self) -> int:
        return len(self.channels)

    def check(self, shape: Shape) -> None:
        if len(shape) != 3:
            raise ModelError("backbone: cnn needs images, but this task has none; set backbone: {kind: mlp}")
        if min(shape[1:]) < 2 ** len(self.channels):
            raise ModelError(
                f"backbone.channels: {len(self.channels)} convolutions halve images of {shape[1]} x {shape[2]} "
                "to nothing; use fewer"
            )

    def build(self, shape: Shape, num_scores: int) -> Network:
        depths = [shape[0], *self.channels]
        layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in zip(depths, depths[1:], strict=False)]
        places = math.prod(side // 2 ** len(layers) for side in shape[1:])
        after = nn.Sequential(_activation(self.activation), nn.MaxPool2d(2))
        return Network(layers, after, nn.Linear(depths[-1] * places, num_scores))


class Flat(Network):
    """A network that flattens samples of any shape to vectors."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().forward(x.flatten(1))


def _activation(name: Activation) -> nn.Module:
    return nn.Tanh() if name == "tanh" else nn.ReLU()


NETS: dict[str, type[Net]] = {"mlp": Mlp, "cnn": Cnn}

AnyNet = Annotated[Mlp | Cnn, Field(discriminator="kind")]


def is_net(backbone: Any) -> bool:
    """True for a network, or for the YAML mapping of one."""
    return isinstance(backbone, Net) or (isinstance(backbone, dict) and "kind" in backbone)
