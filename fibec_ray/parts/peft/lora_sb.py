"""LoRA-SB: one small trained matrix between two frozen factors. The aggregator `fed_sb` chooses the factors.

Shapes: r inner size, `in`/`out` features of an adapted Linear, B samples, T tokens, D lanes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray.low_rank import CORE, A, B
from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.between import Between, as_factors
from fibec_ray.tensors import Tensors


class LoraSb(Between):
    """LoRA-SB (Ponkshe et al. 2024), as Fed-SB trains it: h = W x + B R A x with only R (r, r) trained.

    B (out, r) and A (r, in) are the same on all devices. B, R and A start at 0. After the first round the aggregator
    `fed_sb` sets them once from the devices' gradients. There is no factor alpha / r (the papers set it to 1).
    All R must be shared, since a personal one would have no factors.

    Devices send r^2 numbers per weight. From the second round on, downlink bytes include B and A, since a device may be
    new.
    """

    kind: Literal["lora_sb"] = "lora_sb"
    partners: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"aggregator": "fed_sb", "sharing": ("all", "body")}
    side_by_side: ClassVar[bool] = True
    r: int = Field(16, ge=1, description="inner size; R has r^2 numbers per weight")
    marks: ClassVar[tuple[str, ...]] = (".lora_",)
    sends: ClassVar[str] = "one matrix (r, r) for each weight"

    @property
    def inner(self) -> int:
        return self.r

    def middle(self, name: str, out: int, inside: int) -> nn.Module:
        return Core(self.r, out, inside)

    def name_of(self, name: str) -> str:
        for ours, sent in ((".lora_A.weight", CORE), (".lora_A.a", A), (".lora_A.b", B)):
            if name.endswith(ours):
                return name.removesuffix(ours) + sent
        return name

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        attached = super().attach(module, head)
        names = map(attached.name_of, dict(attached.module.named_parameters()))
        return replace(attached, server_only=frozenset(name for name in names if name.endswith((A, B))))

    def factors(self, values: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, int]]) -> Tensors:
        """B R and A."""
        found = Tensors()
        for x in sizes:
            found |= as_factors(x, values[x + B] @ values[x + CORE], values[x + A])
        return found


class Core(nn.Module):
    """B R A x. weight: R (r, r), the only trained one. a: A (r, in). b: B (out, r)."""

    def __init__(self, r: int, out: int, inside: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(r, r))
        self.a = nn.Parameter(torch.zeros(r, inside), requires_grad=False)
        self.b = nn.Parameter(torch.zeros(out, r), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in) -> (B, T, out)."""
        return F.linear(F.linear(F.linear(x, self.a), self.weight), self.b)

    def for_lanes(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same with the R of D lanes, weight (D, r, r). x: (N, T, in), the lanes' samples one after the other."""
        inner = F.linear(x, self.a)
        mixed = torch.bmm(inner.reshape(len(weight), -1, inner.shape[-1]), weight.mT)
        return F.linear(mixed.view(inner.shape), self.b)

    def sample_gradients(self, a: Tensor, e: Tensor) -> Tensor:
        """Each sample's gradient of R, (B, r, r): sum_t (B^T e_t) (A a_t)^T. a: (B, T, in). e: (B, T, out)."""
        return torch.bmm((e @ self.b.float()).mT, a @ self.a.float().T)
