"""pFedMe: the shared model follows the devices' own ones, each of which stays near it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fibec_ray.parts.solver.base import Pull, Session, Solver
from fibec_ray.tensors import Tensors, select


class PFedMe(Solver):
    """pFedMe (Dinh et al., NeurIPS 2020)."""

    kind: Literal["pfedme"] = "pfedme"
    strength: float = Field(15.0, ge=0, allow_inf_nan=False, description="lambda")
    inner_steps: int = Field(5, ge=1, description="K: steps of theta on each batch")
    follow: float = Field(0.5, gt=0, le=1, description="eta lambda: share of the way to theta that w goes each batch")

    @property
    def needs_shared(self) -> bool:
        return True

    @property
    def sums_steps(self) -> bool:
        return False

    @property
    def has_own_model(self) -> bool:
        return True

    @property
    def keeps(self) -> str:
        return "own model (device)"

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        pull = Pull(select(session.received, session.shared), self.strength, self.follow)
        followed = session.train(repeats=self.inner_steps, pull=pull)
        own = session.read()
        session.load(followed)
        return own

    def own(self, memory: Tensors) -> Tensors:
        return memory
