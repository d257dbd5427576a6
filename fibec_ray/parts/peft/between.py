"""Trained matrices between two frozen ones, in place of LoRA's factors: h = W x + B M A x, with M small.

Shapes: r inner size, `in`/`out` features of an adapted Linear.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fibec_ray.errors import ModelError
from fibec_ray.low_rank import A, B
from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.library import InLinears, saved_name
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.peft.ranks import adapted_layers
from fibec_ray.tensors import Tensors


class Between(InLinears):
    """Base of kinds that train only what lies between two frozen matrices B (out, r) and A (r, in).

    The scaling is 1 (alpha = r). The saved adapter is a LoRA with the factors B M and A, so it loads with
    `PeftModel.from_pretrained`.
    """

    @property
    @abstractmethod
    def inner(self) -> int:
        """r: number of rows of A."""

    @abstractmethod
    def middle(self, name: str, out: int, inside: int) -> nn.Module:
        """A module that computes B M A x. It has a `weight`. name: of the adapted Linear, as in updates."""

    @abstractmethod
    def name_of(self, name: str) -> str:
        """The name in updates of a tensor of `middle`, from X.lora_A.NAME."""

    @abstractmethod
    def factors(self, values: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, int]]) -> Tensors:
        """The factors X.lora_A.weight and X.lora_B.weight with the trained matrices in B. sizes: (out, in) by X."""

    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        from peft import LoraConfig

        return LoraConfig(r=self.inner, lora_alpha=self.inner, target_modules=targets, task_type=task_type)

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        attached = super().attach(module, head)
        layers, sizes = adapted_layers(attached.module), dict[str, tuple[int, int]]()
        for path, layer in attached.module.named_modules():
            if layer in layers:
                sizes[saved_name(path)] = self._replace(saved_name(path), layer)
        return replace(attached, config={**attached.config, SIZES: sizes}, name_of=self._name)

    def _replace(self, name: str, layer: Any) -> tuple[int, int]:
        """Put `middle` in the place of LoRA's factors. Returns the layer's sizes (out, in)."""
        a, b = layer.lora_A["default"], layer.lora_B["default"]
        if not isinstance(a, nn.Linear) or not isinstance(b, nn.Linear):
            raise ModelError(f"method.peft: {self.kind} adapts Linears, but {name} is none; choose lora")
        size = b.out_features, a.in_features
        layer.lora_A["default"], layer.lora_B["default"] = self.middle(name, *size), nn.Identity()
        return size

    def _name(self, name: str) -> str:
        return self.name_of(saved_name(name))

    def saved(self, values: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        others = {name: value for name, value in values.items() if not self.is_adapter(name)}
        plain = {key: value for key, value in config.items() if key != SIZES}
        return self.factors(values, config[SIZES]) | others, plain

    def reopened(self, values: Tensors, config: Mapping[str, Any], file: Path) -> tuple[Peft, Tensors]:
        """Plain LoRA: the trained matrices are in its B."""
        return Lora(r=self.inner, alpha=self.inner, target_modules=self.target_modules), values


SIZES = "sizes"
"""Key in an attached kind's configuration: (out, in) of the adapted Linears by name. Not saved."""


def as_factors(x: str, left: Tensor, right: Tensor) -> Tensors:
    """The pair X with B = left (out, r) and A = right (r, in)."""
    return {x + A: right.contiguous(), x + B: left.contiguous()}
