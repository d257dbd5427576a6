"""FedRep: first the head, then the body."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fibec_ray.parts.part import Need
from fibec_ray.parts.solver.base import Session, Solver
from fibec_ray.tensors import Tensors


class FedRep(Solver):
    """FedRep (Collins et al., ICML 2021): with the body as received, the head for its epochs; then, with it, the body.

    The head is what is personal, the body what is shared: sharing body. With a verbaliser there is no head, and the
    sharing rule's last_blocks play its part; nothing personal is refused. Each of the two has an optimiser of its own,
    and `local.max_steps` bounds each. The log counts the steps of the body; flops count both.
    """

    kind: Literal["fedrep"] = "fedrep"
    head_epochs: int = Field(
        2, ge=1, description="passes for the head; those for the body are local.epochs. FederatedScope has 2 and 1"
    )
    needs: ClassVar[tuple[Need, ...]] = ("shared", "personal", "moving")

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        session.train(moves=session.personal, epochs=self.head_epochs)
        session.train(moves=session.shared, first_epoch=self.head_epochs)
        return memory
