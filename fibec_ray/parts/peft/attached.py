"""A base model with a PEFT kind attached, as `attach` returns it.

Shapes: B samples, S tokens of a sample, m virtual tokens, H hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Any]
"""Arguments of a transformers model: input_ids or inputs_embeds, attention_mask (B, S), token_type_ids (B, S) if
the data has them, and what a PEFT kind adds.
"""


@dataclass(frozen=True)
class Attached:
    """A base model with one PEFT kind attached.

    module: holds the base and all trainable tensors. base: the transformers model in it, called with the output of
    `extend`. config: of the saved adapter, as plain values. name_of: a parameter's name in `module` -> the name of its
    tensor in updates and files.
    """

    module: nn.Module
    base: Any
    config: Mapping[str, Any]
    name_of: Callable[[str], str]
    extend: Callable[[Inputs], Inputs] = lambda inputs: inputs
    num_prompts: int = 0
    """virtual tokens that pass through the blocks; outputs start with their states"""
    num_prefixes: int = 0
    """virtual tokens that are only attended to; outputs do not include them"""
    server_only: frozenset[str] = frozenset()
    """the names under which tensors travel that no device trains"""
    switched_off: Callable[[], AbstractContextManager[None]] = nullcontext
    """a block in which the base computes without the kind; only of kinds with `Peft.can_switch_off`"""

    def __call__(self, **inputs: Any) -> Any:
        """Run the base on a batch, with virtual tokens first."""
        return self.base(**self.extend(inputs))


def in_front(inputs: Inputs, embedding: nn.Module, make: Callable[[Tensor, Tensor], Tensor]) -> Inputs:
    """Put m prompts before each sample's tokens.

    make: token embeddings (B, S, H) and mask (B, S) -> prompts (B, m, H).
    """
    mask: Tensor = inputs["attention_mask"]
    embeds: Tensor = inputs["inputs_embeds"] if "inputs_embeds" in inputs else embedding(inputs["input_ids"])
    prompts = make(embeds, mask).to(embeds.dtype)
    longer = {"inputs_embeds": torch.cat([prompts, embeds], dim=1), "attention_mask": wider(mask, prompts.shape[1])}
    if "token_type_ids" in inputs:  # virtual tokens are of type 0, as in peft
        longer["token_type_ids"] = wider(inputs["token_type_ids"], prompts.shape[1], 0)
    return longer


def wider(values: Tensor, num_virtual: int, value: int = 1) -> Tensor:
    """(B, S) -> (B, m + S), with `value` in the new columns. With 1 in a mask, all tokens attend to virtual tokens."""
    return torch.cat([values.new_full((len(values), num_virtual), value), values], dim=1)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a peft configuration to values for JSON."""
    values: dict[str, Any] = json.loads(json.dumps({**config, "inference_mode": True}, default=_plain))
    return values


def _plain(value: Any) -> Any:
    """Convert sets and enums for JSON."""
    return sorted(value) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))
