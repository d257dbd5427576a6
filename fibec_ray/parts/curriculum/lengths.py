"""Length curricula: samples are truncated in early rounds."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.curriculum.pacing import progress
from fibec_ray.parts.part import Need, Setting


class LengthWarmup(Curriculum):
    """SLW (Li, Zhang, He, NeurIPS 2022): round t trains on all samples, truncated to l_t tokens.

    l_t = s0 + (s_end - s0) min(t / T_c, 1), rounded down to a multiple of 8. s_end is `data.max_length`.
    The paper pretrains on full sequences and counts steps. Ours counts rounds and truncates texts, but keeps what a
    classification needs (template, mask, special tokens). From T_c on nothing is truncated, even if s_end is not a
    multiple of 8. Communication does not change; compute does.
    """

    kind: Literal["length_warmup"] = "length_warmup"
    start: int = Field(8, ge=1, description="s0: tokens in the first round, special tokens included")
    full_at: float = Field(
        0.5, gt=0, le=1, description="T_c, as a fraction of the rounds; 1: no round is at full length"
    )
    multiple_of: int = Field(8, ge=1, description="lengths are rounded down to a multiple of this")
    needs: ClassVar[tuple[Need, ...]] = ("text",)

    @model_validator(mode="after")
    def _start_survives_rounding(self) -> LengthWarmup:
        if self.start < self.multiple_of:
            raise ValueError(
                f"start {self.start} would round down to 0; set start to at least multiple_of ({self.multiple_of})"
            )
        return self

    def unfit_for(self, setting: Setting) -> str | None:
        if self.start < setting.max_length:
            return None
        return (
            f"start {self.start} leaves nothing to warm up: samples have at most {setting.max_length} tokens; "
            "lower start, or raise data.max_length"
        )

    def max_length(self, round_: int, rounds: int, full: int) -> int | None:
        x = progress(round_, rounds, self.full_at)
        if x >= 1:
            return None
        length = math.floor(self.start + (full - self.start) * x + 1e-9)
        return length - length % self.multiple_of


class ShortFirst(Curriculum):
    """Shortformer (Press, Smith, Lewis, ACL 2021), its staged training: first short samples, then whole ones.

    Every round uses all samples. In the first stage they are truncated to a share of `data.max_length`, as in
    `length_warmup`. The paper trains a language model from scratch and re-splits its text; its position-infused
    attention changes the architecture and cannot be used with a frozen pretrained model. Communication does not change.
    """

    kind: Literal["short_first"] = "short_first"
    share: float = Field(
        0.25, gt=0, lt=1, description="length of samples in the first stage, as a share of data.max_length"
    )
    full_at: float = Field(0.5, gt=0, le=1, description="fraction of the rounds that the first stage takes; 1: all")
    needs: ClassVar[tuple[Need, ...]] = ("text",)

    def max_length(self, round_: int, rounds: int, full: int) -> int | None:
        if progress(round_, rounds, self.full_at) >= 1:
            return None
        return max(1, int(self.share * full + 1e-9))
