"""An encoder-decoder with its adapter but without values, to plan a run."""

from __future__ import annotations

from fibec_ray.models.outline import Outline
from fibec_ray.models.seq2seq import Seq2SeqModel


class Seq2SeqOutline(Outline, Seq2SeqModel):
    """A Seq2SeqModel of fake tensors."""

    @property
    def blocks_are_alike(self) -> bool:
        """False: blocks of encoder and decoder differ."""
        return False
