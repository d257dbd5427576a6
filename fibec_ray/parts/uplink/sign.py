"""One bit for each entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fibec_ray.parts.uplink.codec import Compensated, in_blocks
from fibec_ray.tensors import Tensors
from fibec_ray.types import Extra


class Sign(Compensated):
    """EF-signSGD (Karimireddy et al., ICML 2019): the sign of each entry, times the mean magnitude of its tensor.

    One bit an entry, and 4 bytes a tensor. An entry of zero counts as positive. Without error feedback the sign alone
    need not converge.
    """

    kind: Literal["sign"] = "sign"

    @property
    def sends(self) -> str:
        return "as signs"

    def pack(self, vector: Tensor, sizes: Sequence[int], rng: torch.Generator) -> Tensors:
        scales = torch.stack([part.abs().mean() for part in vector.split(list(sizes))])
        return {
            "bits": (in_blocks((vector >= 0).to(torch.uint8), 8) << _PLACES).sum(1, dtype=torch.uint8),
            "scales": scales,
        }

    def unpack(self, payload: Tensors, sizes: Sequence[int]) -> Tensor:
        bits = ((payload["bits"][:, None] >> _PLACES) & 1).flatten()[: sum(sizes)]
        return (2 * bits.float() - 1) * payload["scales"].repeat_interleave(torch.tensor(sizes))

    def layout(self, sizes: Sequence[int]) -> Mapping[str, Extra]:
        return {"bits": Extra((-(-sum(sizes) // 8),), torch.uint8), "scales": Extra((len(sizes),), least=0)}


_PLACES = torch.arange(8, dtype=torch.uint8)
