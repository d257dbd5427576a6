"""Finds the transformer blocks of a backbone by the shape of its module tree."""

from __future__ import annotations

from typing import Any

from torch import nn

from fibec_ray.errors import ModelError

SHARED = "albert_layer_groups"
"""ALBERT's blocks. Each runs several times in a pass."""


def blocks_of(module: Any) -> nn.ModuleList:
    """The list of transformer blocks. Raises ModelError if the architecture has none."""
    count = getattr(module.config, "num_hidden_layers", None)
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return child
    raise ModelError(f"method.peft: {type(module).__name__} keeps its {count} blocks in no list; choose lora")


def find_blocks(module: Any) -> list[nn.Module]:
    """The blocks in the order in which they run, ALBERT's once each; empty if they are not modules of their own."""
    count = module.config.num_hidden_layers
    for child in module.modules():
        lists = {name: part for name, part in child.named_children() if isinstance(part, nn.ModuleList)}
        if SHARED in lists:
            return list(lists[SHARED])
        fitting = [part for part in lists.values() if len(part) == count]
        if len(fitting) == 1:  # XLM has a list for each part of its blocks
            return list(fitting[0])
        if fitting:
            return []
    return []
