"""FedRep and FedAlt: train the personal and the shared tensors one after the other."""

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

    FedAlt (Pillutla et al., ICML 2022) does the same for any choice of personal tensors. A co-author's code of FibecFed
    trains the shared tensors first, and both for `local.epochs`: `first: shared`, `head_epochs: null`.
    """

    kind: Literal["fedrep"] = "fedrep"
    head_epochs: int | None = Field(
        2,
        ge=1,
        description="epochs of the head; null: local.epochs, as for the body. FederatedScope uses 2 and 1",
    )
    first: Literal["personal", "shared"] = Field("personal", description="which tensors are trained first")
    needs: ClassVar[tuple[Need, ...]] = ("shared", "personal", "moving")

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        personal = session.personal, session.epochs if self.head_epochs is None else self.head_epochs
        shared = session.shared, session.epochs
        done = 0
        for moves, epochs in (personal, shared) if self.first == "personal" else (shared, personal):
            session.train(moves=moves, first_epoch=done, epochs=epochs)
            done += epochs
        return memory
