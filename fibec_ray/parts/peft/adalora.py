"""AdaLoRA: a budget of ranks, spent where they matter. The device half is the objective of the same name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.library import InLinears
from fibec_ray.tensors import Tensors, under_prefix

E = ".lora_E"


class AdaLora(InLinears):
    """AdaLoRA (Zhang et al., ICLR 2023): h = W x + s P diag(e) Q x with e = 0 at the start, under a shrinking rank
    budget.

    The least important entries of e are set to 0 as the budget shrinks from init_r to r per adapted weight.
    Ours, for a federation: devices score the entries of e (objective `adalora`). The server averages the scores over a
    round's devices and sets e to 0 outside the best b(t) of all weights together, so all devices use the same ranks.
    b(t) falls by the paper's cubic rule, in rounds: init_r in the first warmup_fraction of them, r in the last
    final_fraction. As in the paper, a zeroed entry can come back. s = alpha / init_r throughout; peft's follows the
    ranks in use. Fisher information is not available.
    """

    kind: Literal["adalora"] = "adalora"
    partners: ClassVar[Mapping[str, str]] = {"objective": "adalora"}
    init_r: int = Field(12, ge=1, description="rank at the start; 1.5 r in the paper")
    r: int = Field(8, ge=1, description="mean rank per adapted weight at the end")
    alpha: float = Field(32, gt=0, description="numerator of the scaling s")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of Q, in training")
    warmup_fraction: float = Field(0.1, ge=0, lt=1, description="share of the rounds before the budget shrinks")
    final_fraction: float = Field(0.3, ge=0, lt=1, description="share of the rounds at the end with the final budget")
    peft_chooses: ClassVar[bool] = True
    marks: ClassVar[tuple[str, ...]] = (".lora_",)

    @model_validator(mode="after")
    def _shrinks(self) -> AdaLora:
        if self.init_r < self.r:
            raise ValueError(f"init_r {self.init_r} is less than r {self.r}, but the budget must shrink; raise init_r")
        if self.warmup_fraction + self.final_fraction >= 1:
            raise ValueError(
                f"warmup_fraction {self.warmup_fraction} and final_fraction {self.final_fraction} leave no rounds to "
                "shrink in; lower one of them"
            )
        return self

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        attached = super().attach(module, head)
        for name, parameter in attached.module.named_parameters():
            if ".ranknum." in name:  # peft 0.21 makes it trainable when it casts adapters, as on a bfloat16 base
                parameter.requires_grad_(False)
        return attached

    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        from peft import AdaLoraConfig

        # total_step is for peft's own schedule, which never runs here.
        return AdaLoraConfig(
            init_r=self.init_r,
            target_r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            total_step=10**9,
            task_type=task_type,
        )

    def budget(self, round_: int, rounds: int) -> float:
        """Mean rank per adapted weight after this round."""
        start, end = self.warmup_fraction * rounds, (1 - self.final_fraction) * rounds
        progress = min(1.0, max(0.0, (round_ + 1 - start) / (end - start)))
        return self.r + (self.init_r - self.r) * (1 - progress) ** 3

    def after_round(self, shared: Tensors, control: Tensors, round_: int, rounds: int) -> Tensors:
        scores = under_prefix("scores", control)
        if not scores:
            return {}
        flat = torch.cat([scores[name].flatten() for name in scores])
        count = round(self.budget(round_, rounds) * len(scores))
        kept = torch.zeros(len(flat), dtype=torch.bool)
        kept[torch.argsort(flat, descending=True, stable=True)[:count]] = True
        parts: list[Tensor] = list(kept.split([value.numel() for value in scores.values()]))
        return {
            name: shared[name] * part.view_as(shared[name])
            for name, part in zip(scores, parts, strict=True)
            if name in shared
        }
