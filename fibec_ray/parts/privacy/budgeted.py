"""Base of privacy rules with Gaussian noise: their settings, and the search for the noise of a target epsilon."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

from pydantic import Field, model_validator

from fibec_ray.parts.privacy import accounting
from fibec_ray.parts.privacy.base import Exposure, Privacy

TARGET = 8.0
"""Epsilon where neither the noise nor a target is set."""


class Budgeted(Privacy):
    """Base of rules that clip to norm C and add noise N(0, (z C)^2) to a sum; z is set, or follows from a target."""

    clip: float | None = Field(1.0, gt=0, description="C: largest L2 norm; null: no clipping, which needs noise: 0")
    noise: float | None = Field(
        None,
        ge=0,
        description="z: standard deviation of the noise on the sum, in units of C; null: set by target_epsilon",
    )
    target_epsilon: float | None = Field(
        None,
        gt=0,
        le=100,
        description="epsilon after the last round; z is the smallest noise that meets it; 8 if noise is not set either",
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="delta of the guarantee; below 1 / number of devices or samples")

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("noise") is None and raw.get("target_epsilon") is None:
            return {**raw, "target_epsilon": TARGET}
        return raw

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        if self.noise is not None and self.target_epsilon is not None:
            raise ValueError(
                f"noise {self.noise:g} and target_epsilon {self.target_epsilon:g} are both set, but one follows from "
                "the other; leave one of them out"
            )
        if self.clip is None and self.noise != 0:
            raise ValueError("clip: null leaves the noise without a scale; set clip, or noise: 0")
        return self

    @property
    def is_noisy(self) -> bool:
        """True if the rule gives a guarantee."""
        return self.noise != 0

    @property
    def multiplier(self) -> float:
        """z, once it is known."""
        assert self.noise is not None, "call `calibrated` first"
        return self.noise

    @abstractmethod
    def account(self, noise: float, exposure: Exposure, rounds: int) -> float:
        """Epsilon after so many rounds with this noise, which is above 0."""

    def calibrated(self, exposure: Exposure) -> Self:
        if self.target_epsilon is None:
            return self
        noise = accounting.noise_for(self.target_epsilon, lambda noise: self.account(noise, exposure, exposure.rounds))
        return self.model_copy(update={"noise": noise, "target_epsilon": None})

    def epsilon(self, exposure: Exposure, rounds: int) -> float | None:
        if not self.is_noisy or not rounds:
            return None
        return self.account(self.multiplier, exposure, rounds)
