"""No training: a baseline that scores the unchanged base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from fibec_ray.parts.solver.base import Session, Solver
from fibec_ray.tensors import Tensors


class Idle(Solver):
    """Trains nothing. With a verbaliser this is the base model's zero-shot score; a task head stays random."""

    kind: Literal["idle"] = "idle"
    silences: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("curriculum", "mask", "objective", "uplink", "aggregator"), "trains nothing"
    )

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        return memory
