"""QSGD with 8 bits for each entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.parts.uplink.codec import Codec, in_blocks
from fibec_ray.tensors import Tensors
from fibec_ray.types import Extra

LEVELS = 127


class Int8(Codec):
    """QSGD (Alistarh et al., NeurIPS 2017): rounds entries to 8 bits at random, so that the expected value is exact.

    A block's scale s is its largest magnitude / 127. An entry x is sent as floor(x / s + u), u uniform on [0, 1): one
    of the two nearest levels, and on average x / s. 1 byte an entry, and 4 a block.
    Ours: the scale is the largest magnitude, not the Euclidean norm, and the codes are not compressed further.
    """

    kind: Literal["int8"] = "int8"
    block_size: int = Field(512, ge=1, description="entries with one scale")
    sends: ClassVar[str] = "in 8 bits, rounded at random"

    def pack(self, vector: Tensor, sizes: Sequence[int], rng: torch.Generator) -> Tensors:
        blocks = in_blocks(vector, self.block_size)
        scales = blocks.abs().amax(1) / LEVELS
        levels = torch.where(scales[:, None] > 0, blocks / scales[:, None], 0.0)
        rounded = (levels + torch.rand(blocks.shape, generator=rng)).floor().clamp(-LEVELS, LEVELS)
        return {"values": rounded.to(torch.int8).flatten()[: len(vector)], "scales": scales}

    def unpack(self, payload: Tensors, sizes: Sequence[int]) -> Tensor:
        values = in_blocks(payload["values"].float(), self.block_size)
        return (values * payload["scales"][:, None]).flatten()[: sum(sizes)]

    def layout(self, sizes: Sequence[int]) -> Mapping[str, Extra]:
        count = sum(sizes)
        scales = Extra((-(-count // self.block_size),), least=0)
        return {"values": Extra((count,), torch.int8), "scales": scales}
