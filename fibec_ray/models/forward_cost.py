"""Floating-point operations of a backbone's forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from fibec_ray.parts.peft.base import is_product


@dataclass(frozen=True)
class ForwardCost:
    """Flops of a forward pass, 2 per multiply-add: dense layers per token, attention per token and length.

    A sample without length, such as an image, counts as one token.
    """

    dense: float
    """per token"""
    attention: float = 0.0
    """per token and token that it attends to"""
    head: float = 0.0
    """of a language-model head, per predicted token"""

    @classmethod
    def of(cls, base: Any, num_layers: int) -> Self:
        """The cost of a text model with so many blocks."""
        inner = getattr(base, getattr(base, "base_model_prefix", ""), base)
        # Without the pooler of the BERT family, which is not used.
        modules = [module for name, module in inner.named_modules() if not name.startswith("pooler.")]
        products: list[Any] = [m for m in modules if is_product(m)]
        # From the layers' sizes, since a streamed weight has no entries here.
        dense = 2.0 * sum(m.in_features * m.out_features if isinstance(m, nn.Linear) else m.nx * m.nf for m in products)
        hidden, vocabulary = base.config.hidden_size, getattr(base.config, "vocab_size", None) or 0
        return cls(dense, 4.0 * num_layers * hidden, 2.0 * hidden * vocabulary)

    def flops_per_token(self, length: int) -> float:
        """Flops per token of a sample of this length."""
        return self.dense + self.attention * length
