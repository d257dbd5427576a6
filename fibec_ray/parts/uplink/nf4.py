"""QLoRA's 4-bit numbers, for updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.parts.uplink.codec import Compensated, in_blocks
from fibec_ray.tensors import Tensors
from fibec_ray.types import Extra

NUMBERS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""NF4: quantiles of a normal distribution, scaled to [-1, 1]."""


class Nf4(Compensated):
    """NF4 (Dettmers et al., NeurIPS 2023): rounds each entry to one of 16 normal quantiles, times its block's scale.

    The scale is the block's largest magnitude, in float32. Half a byte an entry, and 4 bytes a block. Rounding to the
    nearest is biased; error feedback corrects this in later rounds.
    """

    kind: Literal["nf4"] = "nf4"
    block_size: int = Field(64, ge=1, description="entries with one scale; 64 in the paper")

    @property
    def sends(self) -> str:
        return "in 4 bits"

    def pack(self, vector: Tensor, sizes: Sequence[int], rng: torch.Generator) -> Tensors:
        blocks, numbers = in_blocks(vector, self.block_size), torch.tensor(NUMBERS)
        scales = blocks.abs().amax(1)
        shares = torch.where(scales[:, None] > 0, blocks / scales[:, None], 0.0)
        codes = torch.bucketize(shares, (numbers[1:] + numbers[:-1]) / 2).to(torch.uint8).flatten()[: len(vector)]
        low, high = in_blocks(codes, 2).unbind(1)
        return {"values": low + 16 * high, "scales": scales}

    def unpack(self, payload: Tensors, sizes: Sequence[int]) -> Tensor:
        codes = torch.stack([payload["values"] % 16, payload["values"] // 16], 1).flatten()[: sum(sizes)]
        shares = in_blocks(torch.tensor(NUMBERS)[codes.long()], self.block_size)
        return (shares * payload["scales"][:, None]).flatten()[: sum(sizes)]

    def layout(self, sizes: Sequence[int]) -> Mapping[str, Extra]:
        count = sum(sizes)
        scales = Extra((-(-count // self.block_size),), least=0)
        return {"values": Extra((-(-count // 2),), torch.uint8), "scales": scales}
