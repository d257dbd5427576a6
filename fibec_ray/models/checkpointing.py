"""Gradient checkpointing: blocks keep their inputs alone and are computed again in the backward pass.

transformers does so only for blocks in training mode, which says whether dropout is on, too; here it does so always.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fibec_ray.errors import ModelError


def recompute_blocks(base: Any) -> None:
    """Raises ModelError for an architecture that cannot."""
    try:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"backbone.checkpointing: {error}; set it to false") from error
    if hasattr(base.config, "use_cache"):
        base.config.use_cache = False


def keep_recomputing(module: nn.Module) -> None:
    """After a change of mode: the blocks' own flag, not that of the dropout inside them."""
    for block in module.modules():
        if getattr(block, "gradient_checkpointing", False):
            block.training = True
