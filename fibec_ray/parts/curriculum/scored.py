"""Curricula whose order comes from a model's view of the data: when it is made, and when anew."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.curriculum.paced import Paced
from fibec_ray.tensors import Tensors


class Scored(Paced):
    """A subclass gives each sample a `difficulty`; units are ordered by it, easiest first.

    Before its first scoring a device sees as many units, in no order.
    """

    reduce: Literal["mean", "sum"] = Field(
        "mean", description="over a batch's samples; by sum (as FibecFed is described) short batches rank as easy"
    )
    hardest_first: bool = Field(False, description="true is the anti-curriculum, a control (Wu et al., ICLR 2021)")

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

    keeps: ClassVar[str] = "order of its data (device)"

    def due(self, memory: Tensors, round_: int) -> bool:
        if "order" not in memory:
            return round_ >= self.score_from_round
        return self.rescore_every is not None and round_ - int(memory["scored_round"]) >= self.rescore_every

    @abstractmethod
    def difficulty(self, scan: FisherScan) -> Tensor:
        """(n,) float32 of the shard's samples, at the model's present parameters."""

    def prepare(self, scan: FisherScan, rng: torch.Generator, round_: int) -> Tensors:
        difficulty = self.difficulty(scan)
        of_batches = batch_difficulties(difficulty, scan.batches, self.reduce)
        units = of_batches if self.unit == "batch" else difficulty
        return {
            "order": torch.argsort(units, stable=True, descending=self.hardest_first),
            "scored_round": torch.tensor(max(round_, 0)),
            "sample_difficulty": difficulty,
            "batch_difficulty": of_batches,
        }


def batch_difficulties(difficulty: Tensor, batches: Sequence[Tensor], reduce: str) -> Tensor:
    """f_j of each batch, (num_batches,), from the difficulty (n,) of the shard's samples."""
    return torch.stack([difficulty[rows].sum() if reduce == "sum" else difficulty[rows].mean() for rows in batches])
