"""LoRA on a base that the server moves."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import nn
from torch.nn import functional as F

from fibec_ray.low_rank import MOVED
from fibec_ray.parts.peft.lora import Lora, adapted_layers


class MovingLora(Lora):
    """LoRA on a base that the server moves: h = (W + s D) x + s B A x. D (out x in) starts at 0; no device trains it.

    For methods that merge what devices learnt into the base and start LoRA afresh (FLoRA). D is of a size with W, and
    travels down to devices in each round. W itself is not touched: processes share it.
    """

    kind: Literal["moving_lora"] = "moving_lora"  # type: ignore[assignment]

    @model_validator(mode="after")
    def _no_dora(self) -> MovingLora:
        if self.use_dora:
            raise ValueError("use_dora measures the columns of the base, which moves here; leave it out")
        return self

    def attach(self, module: nn.Module, task_type: str | None) -> Any:
        attached = super().attach(module, task_type)
        scale = self.scaling(None)
        for layer in adapted_layers(attached):
            out, inside = layer.lora_B["default"].out_features, layer.lora_A["default"].in_features
            layer.moved = nn.Parameter(torch.zeros(out, inside), requires_grad=False)
            layer.register_forward_hook(
                lambda layer, args, y: y + (scale * F.linear(args[0].float(), layer.moved)).to(y)
            )
        return attached

    def carries(self, name: str) -> bool:
        return name.endswith(MOVED)
