"""Floating-point operations of a backbone's forward pass."""

from __future__ import annotations

from typing import Any

from torch import nn

from fibec_ray.parts.peft.base import is_product


class ForwardCost:
    """Multiply-adds of one forward pass, as 2 flops each: dense layers by token, attention by token and length."""

    def __init__(self, base: Any, num_layers: int):
        inner = getattr(base, getattr(base, "base_model_prefix", ""), base)
        # Not the pooler of the BERT family, which sees one token and is not used.
        modules = [module for name, module in inner.named_modules() if not name.startswith("pooler.")]
        dense: list[Any] = [m for m in modules if is_product(m)]
        # Of their sizes, as a weight that is elsewhere has no entries here.
        self._dense = 2.0 * sum(
            m.in_features * m.out_features if isinstance(m, nn.Linear) else m.nx * m.nf for m in dense
        )
        self._attention = 4.0 * num_layers * base.config.hidden_size
        self.head = 2.0 * base.config.hidden_size * (getattr(base.config, "vocab_size", None) or 0)
        """of a language model, for each token that it predicts"""

    def flops_per_token(self, length: int) -> float:
        return self._dense + self._attention * length
