"""Ditto: a model of the device's own, trained beside the shared one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fibec_ray.parts.solver.base import Pull, Session
from fibec_ray.parts.solver.own_model import OwnModel
from fibec_ray.tensors import Tensors, select


class Ditto(OwnModel):
    """Ditto (Li et al., ICML 2021): FedAvg, and beside it a model v_k of the device's own.

    v_k minimises l(v) + (lambda / 2) |v - theta|^2, theta the received values of what is shared. It starts where the
    run starts, is trained in each participation on the batches and for as long as the shared model, and is what a
    personal evaluation scores; a device that was never drawn has theta. Doubles local compute; what is sent is
    FedAvg's, bit for bit. lambda = 0: v_k is the model of a device that trains alone.
    A step of rate r takes v_k the share r lambda / (1 + r lambda) of the way to theta: with AdamW's small rates, lambda
    must be larger than where gradients are added up. The default is ours, and not tuned.
    Other parts: the objective's terms are about the shared model alone, the mask about both.
    """

    kind: Literal["ditto"] = "ditto"
    strength: float = Field(10.0, ge=0, allow_inf_nan=False, description="lambda; FederatedScope tries 0.05 to 2")

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        session.train()
        trained = session.read()
        session.load(memory or session.initial)
        session.train(pull=Pull(select(session.received, session.shared), self.strength), own_model=True)
        own = session.read()
        session.load(trained)
        return own
