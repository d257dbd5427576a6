"""Codecs that send 16 bits for each entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fibec_ray.parts.uplink.codec import Codec
from fibec_ray.tensors import Tensors
from fibec_ray.types import Extra


class Bf16(Codec):
    """Rounds each entry to bfloat16, with the range of float32 and 8 bits of precision. 2 bytes an entry."""

    kind: Literal["bf16"] = "bf16"
    sends: ClassVar[str] = "in bfloat16"

    def pack(self, vector: Tensor, sizes: Sequence[int], rng: torch.Generator) -> Tensors:
        return {"values": vector.bfloat16().view(torch.int16)}  # numpy, which carries messages, has no bfloat16

    def unpack(self, payload: Tensors, sizes: Sequence[int]) -> Tensor:
        return payload["values"].view(torch.bfloat16).float()

    def layout(self, sizes: Sequence[int]) -> Mapping[str, Extra]:
        return {"values": Extra((sum(sizes),), torch.int16)}


class Fp16(Codec):
    """Rounds each entry to float16, with 11 bits of precision. 2 bytes an entry.

    An entry of 65,520 or more becomes infinite, and the server then quarantines the update.
    """

    kind: Literal["fp16"] = "fp16"
    sends: ClassVar[str] = "in float16"

    def pack(self, vector: Tensor, sizes: Sequence[int], rng: torch.Generator) -> Tensors:
        return {"values": vector.half()}

    def unpack(self, payload: Tensors, sizes: Sequence[int]) -> Tensor:
        return payload["values"].float()

    def layout(self, sizes: Sequence[int]) -> Mapping[str, Extra]:
        return {"values": Extra((sum(sizes),), torch.float16)}
