"""A base model with one PEFT kind in it, as a kind's `attach` returns it.

Shapes: B samples, S tokens of a sample, m virtual tokens, H hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Any]
"""What a transformers model is called with: input_ids or inputs_embeds, attention_mask (B, S), token_type_ids (B, S)
where a set has them, and what a kind adds."""


@dataclass(frozen=True)
class Attached:
    """module: holds the base and all that is trainable. base: the transformers model in it, called with what `extend`
    makes of a batch. config: of the saved adapter, as plain values. name_of: a parameter's name in `module` -> the name
    that its tensor travels under.
    """

    module: nn.Module
    base: Any
    config: Mapping[str, Any]
    name_of: Callable[[str], str]
    extend: Callable[[Inputs], Inputs] = lambda inputs: inputs
    num_prompts: int = 0
    """virtual tokens that run through the blocks before the sample's own: the states that come out have them first"""
    num_prefixes: int = 0
    """virtual tokens that are looked at only: the states that come out are the sample's own"""
    server_only: frozenset[str] = frozenset()
    """the names under which tensors travel that no device trains"""

    def __call__(self, **inputs: Any) -> Any:
        """What the base makes of a batch, virtual tokens first."""
        return self.base(**self.extend(inputs))


def in_front(inputs: Inputs, embedding: nn.Module, make: Callable[[Tensor, Tensor], Tensor]) -> Inputs:
    """The inputs with m prompts before each sample's tokens.

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
    """(B, S) -> (B, m + S). Of a mask: everybody looks at virtual tokens."""
    return torch.cat([values.new_full((len(values), num_virtual), value), values], dim=1)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of peft's as JSON has it."""
    values: dict[str, Any] = json.loads(json.dumps({**config, "inference_mode": True}, default=_plain))
    return values


def _plain(value: Any) -> Any:
    """Sets and enums as JSON has them."""
    return sorted(value) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))
