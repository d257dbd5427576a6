"""RAVAN: several heads of frozen random factors, each with a small trained matrix between them.

Shapes: h heads, r rank of a head, `in`/`out` features of an adapted Linear, N samples, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray import seeds
from fibec_ray.parts.part import Need
from fibec_ray.parts.peft.between import Between, as_factors
from fibec_ray.tensors import Tensors

_SCALE = re.compile(r"(.+)\.ravan_s\.(\d+)\.weight")


class Ravan(Between):
    """RAVAN (Raje et al., NeurIPS 2025): h = W x + sum_i s_i B_i H_i A_i x over heads i.

    A_i and B_i are frozen, random and the same on all devices. H_i (r, r) starts at 0 and the scalar s_i at 1; both are
    trained. A device sends s_i H_i, and goes on with s_i = 1. The server's average of these products is then the
    average of the devices' full updates. Its rank is up to h r, for h r^2 numbers per weight.
    After each round the server sets s_i to 1.

    Ours: the rows of all A_i of a weight are orthonormal, and so are the columns of all B_i, so that heads do not
    overlap. In a Linear with fewer than h r inputs or outputs they only have length 1. Factors are redrawn from `seed`
    and never sent. s_i is sent too, as a change of 0. There is no factor alpha / r, so use higher learning rates than
    for LoRA, about ten times with AdamW. All devices train all heads; the paper's choice of heads for weak devices is
    left out.
    """

    kind: Literal["ravan"] = "ravan"
    side_by_side: ClassVar[bool] = True
    heads: int = Field(4, ge=1, description="h: number of heads")
    r: int = Field(8, ge=1, description="rank of a head")
    seed: int = Field(0, ge=0, description="seed of the random factors")
    marks: ClassVar[tuple[str, ...]] = (".ravan_",)
    sends: ClassVar[str] = "h matrices (r, r) for each weight"
    lacks: ClassVar[tuple[Need, ...]] = ("lora", "steps")

    @property
    def inner(self) -> int:
        return self.heads * self.r

    def middle(self, name: str, out: int, inside: int) -> nn.Module:
        return Heads(self.heads, *self._frozen(name, out, inside))

    def name_of(self, name: str) -> str:
        return name.replace(".lora_A.ravan_", ".ravan_")

    def folded(self, values: Tensors) -> Tensors:
        """s_i H_i in place of H_i, and s_i = 1."""
        new = dict(values)
        for name in values:
            if found := _SCALE.fullmatch(name):
                matrix = f"{found[1]}.ravan_H.{found[2]}.weight"
                new |= {matrix: values[name] * values[matrix], name: torch.ones_like(values[name])}
        return new

    def after_round(self, shared: Tensors, control: Tensors, round_: int, rounds: int) -> Tensors:
        """s_i = 1, whatever noise or compression have added to its change of 0."""
        return {name: torch.ones_like(value) for name, value in shared.items() if _SCALE.fullmatch(name)}

    def factors(self, values: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, int]]) -> Tensors:
        """B = [s_1 B_1 H_1, ..., s_h B_h H_h] and A = [A_1; ...; A_h]."""
        whole, found = self.folded(dict(values)), Tensors()
        for x, size in sizes.items():
            a, b = self._frozen(x, *size)
            matrices = [whole[f"{x}.ravan_H.{i}.weight"] for i in range(self.heads)]
            found |= as_factors(x, b @ torch.block_diag(*matrices), a)
        return found

    def _frozen(self, name: str, out: int, inside: int) -> tuple[Tensor, Tensor]:
        """A of all heads (h r, in) and B (out, h r)."""
        drawn = (seeds.generator(self.seed, "ravan", side, name) for side in ("A", "B"))
        a, b = (torch.randn(n, self.inner, generator=rng) for n, rng in zip((inside, out), drawn, strict=True))
        return _directions(a).T.contiguous(), _directions(b)


def _directions(drawn: Tensor) -> Tensor:
    """Columns of length 1, (n, h r), from normal ones; orthogonal if there are at most n."""
    if drawn.shape[1] > len(drawn):
        return drawn / drawn.norm(dim=0)
    return torch.linalg.qr(drawn)[0].contiguous()


class Heads(nn.Module):
    """sum_i s_i B_i H_i A_i x. a: (h r, in). b: (out, h r)."""

    a: Tensor
    b: Tensor

    def __init__(self, heads: int, a: Tensor, b: Tensor):
        super().__init__()
        r = len(a) // heads
        self.register_buffer("a", a, persistent=False)
        self.register_buffer("b", b, persistent=False)
        # Linears, so that lanes and per-sample gradients work; s_i is a Linear from 1 to 1.
        self.ravan_H = nn.ModuleList(nn.Linear(r, r, bias=False) for _ in range(heads))
        self.ravan_s = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(heads))
        for matrix, scale in zip(self.ravan_H, self.ravan_s, strict=True):
            nn.init.zeros_(matrix.weight)  # type: ignore[arg-type]
            nn.init.ones_(scale.weight)  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """Tells peft the dtype that states are cast to."""
        return self.a

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, in) -> (N, T, out)."""
        parts = F.linear(x, self.a).chunk(len(self.ravan_H), dim=-1)
        triples = zip(parts, self.ravan_H, self.ravan_s, strict=True)
        return F.linear(
            torch.cat([scale(matrix(u).unsqueeze(-1)).squeeze(-1) for u, matrix, scale in triples], -1), self.b
        )
