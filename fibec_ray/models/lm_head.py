"""Where a language model keeps the module that gives its logits; used by torch_model.py."""

from __future__ import annotations

from typing import Any

from torch import nn

from fibec_ray.errors import ModelError


def lm_head(base: Any) -> nn.Module | None:
    """The module from hidden states to vocabulary logits (`lm_head` in most, `cls` in the BERT family); None: it is not
    one module, or has another name."""
    found: nn.Module | None = getattr(base, "lm_head", getattr(base, "cls", None))
    return found


def known_lm_head(base: Any) -> nn.Module:
    """Raises ModelError if the model has none."""
    head = lm_head(base)
    if head is None:
        raise ModelError(
            f"backbone.head: {type(base).__name__} keeps its language-model head under an unknown name; set "
            "backbone.head=mean_pool"
        )
    return head
