"""Chooses how scores are read off a transformer's states: one class per way."""

from __future__ import annotations

from typing import Any

from torch import nn

from fibec_ray.answers import Answers
from fibec_ray.blocks import has_decoder
from fibec_ray.models.lm_head import lm_head
from fibec_ray.models.readout import Readout
from fibec_ray.models.sample_readouts import LastToken, MeanPool, OwnHead, Words, WordsOfWhole
from fibec_ray.models.settings import Head
from fibec_ray.models.token_readouts import Pair, Response, Target, TokenHead


def readout_of(base: Any, answers: Answers, own: nn.Module | None) -> Readout:
    """How scores are read off this transformers model. own: what `own_head` made."""
    if answers.readout == "response":
        return (Target if has_decoder(base.config) else Response)(base, answers)
    if answers.readout == "pair":
        return Pair(base, answers)
    if answers.label_words is not None:
        return (Words if lm_head(base) is not None else WordsOfWhole)(base, answers)
    if own is not None and answers.readout == "token":
        return TokenHead(base, answers, own)
    if own is not None:
        return MeanPool(base, answers, own)
    return (LastToken if hasattr(base, "score") else OwnHead)(base, answers)


def own_head(head: Head, answers: Answers, hidden_size: int) -> nn.Module | None:
    """A new head for mean_pool; None for other heads. Call it where torch's generator is seeded."""
    return nn.Linear(hidden_size, answers.num_scores) if head == "mean_pool" else None
