"""How samples become a backbone's inputs: what a backbone tells the code that encodes data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Reads = Literal["text", "image", "numbers"]
"""What samples are made of."""
EncodeMode = Literal["plain", "masked", "causal", "seq2seq"]
"""How texts are laid out as tokens; see data/encode.py and data/encode_instructions.py."""


@dataclass(frozen=True)
class Encoder:
    """What a backbone reads, and with which tokenizer or image processor.

    `AnyBackbone.encoder` makes one. Code that encodes data needs nothing else of a backbone.
    """

    reads: Reads
    tokenizer: Any = None
    """of transformers, with right padding and a pad token; None unless samples are texts"""
    mode: EncodeMode = "plain"
    max_length: int = 0
    """most tokens of a sample; 0 where samples have no length"""
    processor: Any = None
    """of transformers, for images; None for other samples"""
    num_embeddings: int | None = None
    """token ids that the backbone knows: 0 to num_embeddings - 1; None where there are no tokens"""
