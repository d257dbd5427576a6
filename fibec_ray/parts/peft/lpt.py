"""Late prompt tuning: prompts that enter at a middle block.

Shapes: B samples, S tokens, m prompts, T = m + S positions, H hidden size, L blocks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fibec_ray.blocks import blocks_of
from fibec_ray.errors import ModelError
from fibec_ray.parts.part import Need
from fibec_ray.parts.peft.attached import Attached, Inputs, in_front
from fibec_ray.parts.peft.generated import PROMPTS, FromMean, beside, own_name
from fibec_ray.parts.peft.own import Own, train_head

STD = 0.02
"""Standard deviation of the prompts' initial values."""


class Lpt(Own):
    """LPT, late prompt tuning (Liu et al., Findings of EMNLP 2022): m prompts join each sample's tokens at block
    `layer`.

    The blocks below see no prompts. instance: the prompts are W2 relu(W1 h + b1) + b2, with h the mean of the sample's
    states at that block; otherwise they are one trained table. They are trained and sent.

    Exact, but not cheaper than prompts at block 0: m placeholders, which no token attends to, run through the blocks
    below and are replaced at `layer`. A sample's tokens keep their positions; prompts get rotary positions below 0. The
    paper also pools states in other ways. With `head: model` an encoder's own classification head reads the first
    prompt.
    """

    kind: Literal["lpt"] = "lpt"
    num_tokens: int = Field(10, ge=1, description="m: number of virtual tokens")
    layer: int | None = Field(None, ge=0, description="block before which prompts enter, from 0; null: L // 2")
    instance: bool = Field(True, description="make prompts for each sample; false: one table for all samples")
    bottleneck: int | None = Field(None, ge=1, description="number of rows of W1; null: 16")
    marks: ClassVar[tuple[str, ...]] = (PROMPTS,)
    needs: ClassVar[tuple[Need, ...]] = ("transformer", "text", "one_stack")

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Lpt:
        if self.bottleneck is not None and not self.instance:
            raise ValueError("bottleneck has an effect only with instance: true; leave it out")
        return self

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        blocks, body = blocks_of(module), getattr(module, module.base_model_prefix, module)
        layer = len(blocks) // 2 if self.layer is None else self.layer
        if layer >= len(blocks):
            raise ModelError(
                f"method.peft.layer: {layer}, but the backbone has blocks 0 to {len(blocks) - 1}; lower it"
            )
        _check(body, blocks[0])
        embedding, size = module.get_input_embeddings(), module.config.hidden_size
        maker = self._maker(size).to(embedding.weight.device)
        train_head(module, head)
        causal = any(getattr(part, "is_causal", False) for part in blocks[0].modules())
        late = _Late(maker, self.num_tokens, causal)
        for block in blocks[:layer]:
            block.register_forward_pre_hook(late.hide, with_kwargs=True)
        blocks[layer].register_forward_pre_hook(late.enter, with_kwargs=True)
        first = _first_position(body)

        def extend(inputs: Inputs) -> Inputs:
            late.mask = inputs["attention_mask"]
            more = in_front(inputs, embedding, lambda embeds, _: embeds.new_zeros(len(embeds), self.num_tokens, size))
            return {**more, "position_ids": _positions(late.mask, self.num_tokens, first)}

        whole = beside(module, maker)
        return Attached(whole, module, self.config(head), own_name, extend, num_prompts=self.num_tokens)

    def _maker(self, size: int) -> nn.Module:
        start = torch.randn(self.num_tokens, size) * STD
        return FromMean(start, self.bottleneck or 16) if self.instance else _Table(start)


class _Table(nn.Module):
    """One trained table of prompts, the same for every sample."""

    def __init__(self, start: Tensor):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(start, freeze=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        made: Tensor = self.table(torch.arange(self.table.num_embeddings, device=mask.device).expand(len(mask), -1))
        return made


class _Late:
    """Hooks of the blocks that handle the prompts. mask: (B, S), of the current batch."""

    mask: Tensor

    def __init__(self, maker: Callable[[Tensor, Tensor], Tensor], num_tokens: int, causal: bool):
        self._maker, self._m, self._causal = maker, num_tokens, causal

    def enter(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        """Before block `layer`: replace the placeholders by prompts."""
        given, states = _given(block, args, kwargs)
        own = given.arguments[states][:, self._m :]
        given.arguments[states] = torch.cat([self._maker(own, self.mask).to(own.dtype), own], dim=1)
        return given.args, given.kwargs

    def hide(self, block: nn.Module, args: Any, kwargs: Any) -> Any:
        """Before a lower block: tokens attend to tokens, placeholders to placeholders."""
        given, states = _given(block, args, kwargs)
        given.arguments["attention_mask"] = self._apart(given.arguments[states].dtype)
        return given.args, given.kwargs

    def _apart(self, dtype: torch.dtype) -> Tensor:
        """(B, 1, T, T): 0 where a position attends to another, else the dtype's minimum."""
        m, (batch, length) = self._m, self.mask.shape
        sees = torch.zeros(batch, m + length, m + length, dtype=torch.bool, device=self.mask.device)
        sees[:, :m, :m] = True
        sees[:, m:, m:] = self.mask.bool().unsqueeze(1)
        if self._causal:
            sees &= torch.ones_like(sees[0]).tril()
        return torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min).unsqueeze(1)


def _given(block: nn.Module, args: Any, kwargs: Any) -> tuple[inspect.BoundArguments, str]:
    """Bind a call's arguments by name; also return the name of the states."""
    given = inspect.signature(block.forward).bind(*args, **kwargs)
    return given, next(iter(given.arguments))


def _check(body: Any, block: nn.Module) -> None:
    """Raise ModelError if the model takes no position_ids or a block takes no attention_mask."""
    for part, name in ((body, "position_ids"), (block, "attention_mask")):
        if name not in inspect.signature(part.forward).parameters:
            raise ModelError(
                f"method.peft: lpt needs to set {name}, but {type(part).__name__} does not take it; choose prompt"
            )


def _first_position(body: Any) -> int | None:
    """The position of a sample's first token in a table of positions; None for rotary positions."""
    if any("rotary" in type(part).__name__.lower() for part in body.modules()):
        return None
    padding: int | None = getattr(getattr(body, "embeddings", None), "padding_idx", None)
    return 0 if padding is None or not hasattr(body.embeddings, "create_position_ids_from_input_ids") else padding + 1


def _positions(mask: Tensor, m: int, first: int | None) -> Tensor:
    """(B, T) position ids. A sample's tokens get the same positions as without prompts."""
    positions = torch.arange(-m, mask.shape[1], device=mask.device)
    return (positions if first is None else positions.clamp(min=0) + first).expand(len(mask), -1)
