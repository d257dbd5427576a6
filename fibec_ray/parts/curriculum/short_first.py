"""Shortformer's two stages: samples are cut short for the first rounds, then not at all."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.curriculum.pacing import progress
from fibec_ray.parts.part import Need


class ShortFirst(Curriculum):
    """Shortformer (Press, Smith, Lewis, ACL 2021), its staged training: first short samples, then whole ones.

    All samples in every round; for the first rounds cut to a share of `data.max_length`, as `length_warmup` cuts them.
    Theirs trains a language model from scratch and splits its text anew; its position-infused attention changes the
    architecture and has no place in a frozen pretrained model. What is sent does not change.
    """

    kind: Literal["short_first"] = "short_first"
    share: float = Field(0.25, gt=0, lt=1, description="tokens of a sample in the first stage / data.max_length")
    full_at: float = Field(0.5, gt=0, le=1, description="fraction of the rounds that the first stage takes; 1: all")
    needs: ClassVar[tuple[Need, ...]] = ("text",)

    def max_length(self, round_: int, rounds: int, full: int) -> int | None:
        if progress(round_, rounds, self.full_at) >= 1:
            return None
        return max(1, int(self.share * full + 1e-9))
