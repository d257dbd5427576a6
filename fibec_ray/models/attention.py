"""Attention for a bfloat16 base on a CPU, in float32: PyTorch's fused backward pass is ten times slower in bfloat16."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IN_FLOAT32 = "fibec_sdpa_float32"
"""Its name in transformers."""


def register() -> None:
    """Make transformers know this attention."""
    AttentionInterface.register(IN_FLOAT32, _in_float32)
    AttentionMaskInterface.register(IN_FLOAT32, sdpa_mask)


def _in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' sdpa, computed in float32."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    out, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return out.to(query.dtype), None
