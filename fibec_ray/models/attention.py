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
    """transformers' sdpa, computed in float32. T5's position bias is among the options."""
    given = {name: _float32(option) for name, option in options.items()}
    states = query.float(), key.float(), value.float()
    out, _ = sdpa_attention_forward(module, *states, _float32(attention_mask), **given)
    return out.to(query.dtype), None


def _float32(value: Any) -> Any:
    """The value in float32, if it is a tensor of floating point numbers."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
