"""LoRA on a base that the server updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray.low_rank import MOVED, A, B, best_factors, pairs
from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.peft.ranks import adapted_layers
from fibec_ray.tensors import Tensors, drop


class MovingLora(Lora):
    """LoRA on a base that the server updates: h = (W + s D) x + s B A x.

    D (out x in) starts at 0 and only the server changes it. FLoRA merges all updates into D; FedEx-LoRA and FedMomentum
    merge only what the averaged factors cannot hold. D is as large as W, and is sent to devices in each round. W itself
    does not change, since processes share it. The saved adapter is a LoRA with the rank of D + B A, at most that of W.
    """

    kind: Literal["moving_lora"] = "moving_lora"  # type: ignore[assignment]
    partners: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"aggregator": ("flora", "fedex_lora", "fedmomentum")}
    side_by_side: ClassVar[bool] = False
    can_switch_off: ClassVar[bool] = False

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> MovingLora:
        if self.use_dora:
            raise ValueError("use_dora needs fixed columns of the base, but the base moves here; leave it out")
        for name in ("take_turns", "freeze_a"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} makes the mean of the factors exact, so the base need not move; leave it out, or set peft "
                    "lora"
                )
        return self

    keeps: ClassVar[str] = "the moved base (server)"

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        attached = super().attach(module, head)
        scale = self.scaling(None)
        for layer in adapted_layers(attached.module):
            out, inside = layer.lora_B["default"].out_features, layer.lora_A["default"].in_features
            layer.moved = nn.Parameter(torch.zeros(out, inside), requires_grad=False)
            layer.register_forward_hook(partial(_add_moved, scale))
        names = map(attached.name_of, dict(attached.module.named_parameters()))
        return replace(attached, server_only=frozenset(name for name in names if name.endswith(MOVED)))

    def saved(self, values: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        """Factors s B A of one rank R for all weights, equal to s (D + B A)."""
        sums = {x: values[x + MOVED] + values[x + B] @ values[x + A] for x in pairs(values)}
        rank = max([self.r, *(int(torch.linalg.matrix_rank(value)) for value in sums.values())])
        scale = self.scaling(None) / self.model_copy(update={"r": rank}).scaling(None)
        saved = drop(values, [x + MOVED for x in sums])
        for x, value in sums.items():
            b, a, _ = best_factors([torch.eye(len(value))], [scale * value], rank)
            saved |= {x + B: b.float(), x + A: a.float()}
        return saved, {**config, "r": rank}

    def reopened(self, values: Tensors, config: Mapping[str, Any], file: Path) -> tuple[Peft, Tensors]:
        """Plain LoRA of the rank that holds the move of the base too."""
        return self.as_lora(r=config["r"]), values


def _add_moved(scale: float, layer: Any, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
    return y + (scale * F.linear(args[0].to(layer.moved), layer.moved)).to(y)
