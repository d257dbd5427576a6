"""Small networks that devices train from scratch: what an experiment says of them, and how they are built.

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
    """Weight layers, each with what follows it, and an output layer; all of them are trained."""

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
    """A network from scratch, in place of a pretrained backbone; `method.peft` is `full`."""

    kind: str

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Weight layers before the output layer."""

    @abstractmethod
    def check(self, shape: Shape) -> None:
        """Raises ModelError where samples of this shape do not fit."""

    @abstractmethod
    def build(self, shape: Shape, num_scores: int) -> Network:
        """Initial values come from torch's global generator, as torch's own layers draw them."""


class Mlp(Net):
    """Dense layers. `hidden: []` is a linear model."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = Field((20, 20), description="sizes of the hidden layers")
    activation: Activation = "tanh"

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Mlp:
        if not self.hidden and self.activation != "tanh":
            raise ValueError("activation has no effect without hidden layers; leave it out")
        return self

    @property
    def num_layers(self) -> int:
        return len(self.hidden)

    def check(self, shape: Shape) -> None:
        """Any will do."""

    def build(self, shape: Shape, num_scores: int) -> Network:
        sizes = [math.prod(shape), *self.hidden]
        layers = [nn.Linear(i, o) for i, o in zip(sizes, sizes[1:], strict=False)]
        return Flat(layers, _activation(self.activation), nn.Linear(sizes[-1], num_scores))


class Cnn(Net):
    """Convolutions of 3 x 3, each followed by the activation and the maximum over squares of 2 x 2."""

    kind: Literal["cnn"] = "cnn"
    channels: tuple[PositiveInt, ...] = Field((8, 16), min_length=1, description="filters of each convolution")
    activation: Activation = "relu"

    @property
    def num_layers(self) -> int:
        return len(self.channels)

    def check(self, shape: Shape) -> None:
        if len(shape) != 3:
            raise ModelError("backbone: cnn takes images, and this task has none; set backbone: {kind: mlp}")
        if min(shape[1:]) < 2 ** len(self.channels):
            raise ModelError(
                f"backbone.channels: {len(self.channels)} convolutions halve the images of {shape[1]} x {shape[2]} "
                "to nothing; give fewer"
            )

    def build(self, shape: Shape, num_scores: int) -> Network:
        depths = [shape[0], *self.channels]
        layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in zip(depths, depths[1:], strict=False)]
        places = math.prod(side // 2 ** len(layers) for side in shape[1:])
        after = nn.Sequential(_activation(self.activation), nn.MaxPool2d(2))
        return Network(layers, after, nn.Linear(depths[-1] * places, num_scores))


class Flat(Network):
    """Takes samples of any shape for vectors."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().forward(x.flatten(1))


def _activation(name: Activation) -> nn.Module:
    return nn.Tanh() if name == "tanh" else nn.ReLU()


NETS: dict[str, type[Net]] = {"mlp": Mlp, "cnn": Cnn}

AnyNet = Annotated[Mlp | Cnn, Field(discriminator="kind")]


def is_net(backbone: Any) -> bool:
    """True for a network, or for the mapping that a YAML describes one by."""
    return isinstance(backbone, Net) or (isinstance(backbone, dict) and "kind" in backbone)
