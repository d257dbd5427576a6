"""Delta-LoRA: the base weight follows the change of its LoRA pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.peft.ranks import adapted_layers
from fibec_ray.tensors import Tensors


class DeltaLora(Lora):
    """Delta-LoRA (Zi et al. 2023): each step moves W by lambda times the change of s B A, without a gradient of its
    own.

    h = W_t x + s B_t A_t x, W_{t+1} = W_t + lambda s (B_{t+1} A_{t+1} - B_t A_t). lambda = 0 is LoRA.
    The steps add up: W_t = W_0 + lambda s B_t A_t, since B_0 = 0. So h = W_0 x + (1 + lambda) s B A x, where A and B
    get only the gradient of s B A x, and x gets all of it. No weight is written, and the saved adapter is a LoRA with
    (1 + lambda) alpha.

    Ours: a device sends only A and B, which the server averages, and W follows from the averages. W moves from the
    first step on; the paper waits some steps. Dropout acts on s B A x; W sees all of x.
    """

    kind: Literal["delta_lora"] = "delta_lora"  # type: ignore[assignment]
    side_by_side: ClassVar[bool] = False
    can_switch_off: ClassVar[bool] = False
    ratio: float = Field(2.0, ge=0, description="lambda: how much W moves, in units of the move of s B A")

    @model_validator(mode="after")
    def _no_dora(self) -> DeltaLora:
        if self.use_dora:
            raise ValueError("use_dora needs fixed columns of W, but W moves here; leave it out")
        return self

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        attached = super().attach(module, head)
        for layer in adapted_layers(attached.module):
            layer.register_forward_hook(self._follow)
        return replace(attached, config={**attached.config, "lora_alpha": self.alpha * (1 + self.ratio)})

    def reopened(self, values: Tensors, config: Mapping[str, Any], file: Path) -> tuple[Peft, Tensors]:
        """Plain LoRA with (1 + lambda) alpha."""
        return self.as_lora(alpha=config["lora_alpha"]), values

    def _follow(self, layer: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """Add the movement of W, lambda s B A x, with A and B as constants."""
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        moved = F.linear(F.linear(args[0].to(a.dtype), a), b) * (self.ratio * layer.scaling["default"])
        return out + moved.to(out.dtype)
