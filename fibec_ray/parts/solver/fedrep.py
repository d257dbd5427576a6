"""FedRep: first the head, then the body."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fibec_ray.parts.part import Need
from fibec_ray.parts.solver.base import Session, Solver
from fibec_ray.tensors import Tensors


class FedRep(Solver):
    """FedRep (Collins et al., ICML 2021): trains the head on the received body, then the body with the new head.

    The head is the personal part and the body the shared part: use sharing body. With a verbaliser there is no head;
    set the sharing rule's last_blocks instead. A method without personal tensors is rejected. Head and body have
    separate optimisers, and `local.max_steps` limits each. The log counts the steps of the body; flops count both.
    """

    kind: Literal["fedrep"] = "fedrep"
    head_epochs: int = Field(
        2, ge=1, description="epochs of the head; local.epochs is for the body. FederatedScope uses 2 and 1"
    )
    needs: ClassVar[tuple[Need, ...]] = ("shared", "personal", "moving")

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        session.train(moves=session.personal, epochs=self.head_epochs)
        session.train(moves=session.shared, first_epoch=self.head_epochs)
        return memory
