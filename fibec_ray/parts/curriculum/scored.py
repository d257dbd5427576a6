"""Curricula whose order comes from a model's view of the data: when it is made, and when anew."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fibec_ray.parts.curriculum.paced import Paced
from fibec_ray.tensors import Tensors


class Scored(Paced):
    """A subclass's `prepare` returns `order` and `scored_round`, () int64: the round of the order, 0 at init.

    Before its first scoring a device sees as many units, in no order.
    """

    score_at: Literal["init", "first_participation"] = Field(
        "init",
        description="on which model the order is made: init, of all devices before round 0 (as described); "
        "first_participation, on the model received then, which spreads the cost and skips devices never drawn",
    )
    score_from_round: int = Field(
        0, ge=0, description="with first_participation: the earliest round for it, so that the model has been trained"
    )
    rescore_every: int | None = Field(
        None, ge=1, description="rounds after which a participation makes the order anew; null: never"
    )

    @model_validator(mode="after")
    def _waiting_needs_participation(self) -> Scored:
        if self.score_at == "init" and self.score_from_round:
            raise ValueError("score_from_round has an effect only with score_at: first_participation; set that too")
        return self

    @property
    def opens(self) -> bool:
        return self.score_at == "init"

    def due(self, memory: Tensors, round_: int) -> bool:
        if "order" not in memory:
            return round_ >= self.score_from_round
        return self.rescore_every is not None and round_ - int(memory["scored_round"]) >= self.rescore_every
