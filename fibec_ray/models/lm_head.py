"""Finds the module of a language model that computes its logits."""

from __future__ import annotations

from typing import Any

from torch import nn

from fibec_ray.errors import ModelError

AFTER_THE_HEAD = {"final_logit_softcapping": 0, "lm_head_multiplier": 1, "logit_scale": 1, "logits_scaling": 1}
"""Settings with which some families change logits after the head, and their neutral values."""


def lm_head(base: Any) -> nn.Module | None:
    """The module from hidden states to vocabulary logits (`lm_head` in most models, `cls` in the BERT family).

    None if it is not one module, has another name, or the model changes its output.
    """
    if changed_by(base.config) is not None:
        return None
    found: nn.Module | None = getattr(base, "lm_head", getattr(base, "cls", None))
    last = base.get_output_embeddings()
    return found if found is not None and any(module is last for module in found.modules()) else None


def changed_by(config: Any) -> str | None:
    """The setting with which a family changes its head's logits; None if it does not."""
    return next(
        (name for name, plain in AFTER_THE_HEAD.items() if getattr(config, name, None) not in (None, plain)), None
    )


def known_lm_head(base: Any) -> nn.Module:
    """The language-model head. Raises ModelError if it is not found."""
    head = lm_head(base)
    if head is None:
        raise ModelError(
            f"backbone.head: {type(base).__name__} keeps its language-model head under an unknown name; set "
            "backbone.head=mean_pool"
        )
    return head
