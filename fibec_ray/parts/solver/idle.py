"""No training: the anchor that says what the base model can do as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from fibec_ray.parts.solver.base import Session, Solver
from fibec_ray.tensors import Tensors


class Idle(Solver):
    """Nothing is trained: with a verbaliser, the base model's zero-shot score. A head of ours stays random."""

    kind: Literal["idle"] = "idle"
    silences: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("curriculum", "mask", "objective", "aggregator"), "trains nothing"
    )

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        return memory
