"""Floating-point operations of a backbone's forward pass."""

from __future__ import annotations

from typing import Any

from torch import nn

from fibec_ray.parts.peft.base import is_product


class ForwardCost:
    """Flops of a forward pass, 2 per multiply-add: dense layers per token, attention per token and length."""

    def __init__(self, base: Any, num_layers: int):
        inner = getattr(base, getattr(base, "base_model_prefix", ""), base)
        # Without the pooler of the BERT family, which is not used.
        modules = [module for name, module in inner.named_modules() if not name.startswith("pooler.")]
        dense: list[Any] = [m for m in modules if is_product(m)]
        # From the layers' sizes, since a streamed weight has no entries here.
        self._dense = 2.0 * sum(
            m.in_features * m.out_features if isinstance(m, nn.Linear) else m.nx * m.nf for m in dense
        )
        self._attention = 4.0 * num_layers * base.config.hidden_size
        self.head = 2.0 * base.config.hidden_size * (getattr(base.config, "vocab_size", None) or 0)
        """of a language-model head, per predicted token"""

    def flops_per_token(self, length: int) -> float:
        """Flops per token of a sample of this length."""
        return self._dense + self._attention * length
