"""The model that devices train on sources and targets: a frozen encoder-decoder and a PEFT adapter.

Blocks are those of the encoder, then those of the decoder. Shapes: B samples, S source tokens, T target tokens, H
hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from fibec_ray.model_types import Batch
from fibec_ray.models.blocks import Hidden
from fibec_ray.models.forward_cost import ForwardCost
from fibec_ray.models.inputs import Size, start_id
from fibec_ray.models.readout import Run, no_cache
from fibec_ray.models.torch_model import TorchModel

KEYS, VALUES = ("EncDecAttention.k", "encoder_attn.k_proj"), ("EncDecAttention.v", "encoder_attn.v_proj")
"""Ends of the names of Linears that a decoder applies to the encoder's states: T5's, and those of the BART family."""


class Seq2SeqModel(TorchModel):
    """A TorchModel of an encoder-decoder. Embeddings are those of the source.

    Hidden states are (B, S, H) of the encoder's blocks and (B, T, H) of the decoder's; the last one is the decoder's.
    """

    def _measure(self, base: Any) -> tuple[ForwardCost, int]:
        self._stacks = StackCost.of(base)
        self._num_encoder_blocks = int(base.config.num_hidden_layers)
        return ForwardCost(0.0, head=2.0 * base.config.hidden_size * base.config.vocab_size), base.config.hidden_size

    def layer_of(self, name: str) -> int | None:
        layer = super().layer_of(name)
        return layer if layer is None or ".decoder." not in f".{name}" else self._num_encoder_blocks + layer

    def obstacle_to_lanes(self) -> str | None:
        return "the sources and targets of an encoder-decoder are padded to two lengths, and lanes share one"

    @torch.no_grad()
    def next_scores(self, prompts: Tensor, written: Tensor) -> Tensor:
        ids = prompts.to(self.device)
        start = torch.full_like(ids[:, :1], start_id(self._base.config))
        decoded = torch.cat([start, written.to(self.device)], dim=1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": decoded}
        with self._masks.answered():
            out = self._base(**self._masks.without_idle(inputs, ()), **no_cache(self._base))
        scores: Tensor = out.logits[:, -1].float()
        return scores

    def _run(self, batch: Batch, embeds: Tensor | None, hidden: bool) -> Run:
        arguments = self._masks.without_idle(self._inputs.arguments(batch, embeds, self.device), batch.padded)
        length = self._inputs.size(batch).length
        return Seq2SeqRun(self._base, self._blocks, arguments, length, hidden, masks=self._masks)

    def _flops_of(self, size: Size) -> float:
        return size.rows * self._stacks.flops(size.length, size.target)


class Seq2SeqRun(Run):
    """A forward pass through encoder and decoder."""

    def whole(self) -> Any:
        with self._blocks.caught(self._hidden) as found, self.answered_masks():
            out = self._base(**self._arguments, **no_cache(self._base), output_hidden_states=self._hidden)
        if self._hidden:
            self.states = Hidden(tuple(found), out.decoder_hidden_states[-1])
        return out


@dataclass(frozen=True)
class StackCost:
    """Flops of a sample's forward pass, 2 per multiply-add, without the language-model head."""

    source: float
    """dense layers per source token: those of the encoder, and the keys and values of cross-attention"""
    target: float
    """dense layers per target token"""
    encoder_attention: float
    """per source token and token that it attends to"""
    decoder_attention: float
    """per target token and token that it attends to, in source or target"""

    @classmethod
    def of(cls, base: Any) -> Self:
        """The cost of an encoder-decoder."""
        encoder, decoder = _linears(base.get_encoder()), _linears(base.get_decoder())
        crossing = {name: size for name, size in decoder.items() if name.endswith(KEYS + VALUES)}
        widths = [linear.out_features for name, linear in _named(base.get_decoder()) if name.endswith(KEYS)]
        inner = widths[0]  # D of the attention, which differs from H in T5
        source = sum(encoder.values()) + sum(crossing.values())
        target = sum(decoder.values()) - sum(crossing.values())
        return cls(source, target, 4.0 * inner * int(base.config.num_hidden_layers), 4.0 * inner * len(widths))

    def flops(self, source: int, target: int) -> float:
        """Flops of a sample with so many tokens."""
        encoder = source * (self.source + self.encoder_attention * source)
        return encoder + target * (self.target + self.decoder_attention * (source + target))


def _linears(stack: nn.Module) -> dict[str, float]:
    """Flops per token of each Linear, by name."""
    return {name: 2.0 * linear.in_features * linear.out_features for name, linear in _named(stack)}


def _named(stack: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in stack.named_modules() if isinstance(module, nn.Linear)]
