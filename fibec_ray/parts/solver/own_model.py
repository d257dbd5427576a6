"""Solvers that give a device its own model beside the shared one."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fibec_ray.parts.part import Need
from fibec_ray.parts.solver.base import Pull, Session, Solver
from fibec_ray.tensors import Tensors, select


class OwnModel(Solver):
    """Base of these solvers. The memory holds the own model's trainable values after the device's last
    participation.
    """

    needs: ClassVar[tuple[Need, ...]] = ("shared",)
    keeps: ClassVar[str] = "own model (device)"

    def own(self, memory: Tensors) -> Tensors:
        return memory


class Ditto(OwnModel):
    """Ditto (Li et al., ICML 2021): FedAvg, plus a model v_k of the device's own.

    v_k minimises l(v) + (lambda / 2) |v - theta|^2, theta the received shared values. It starts from the run's initial
    values. In each participation it trains on the same batches and for as long as the shared model. A personal
    evaluation scores it; a device that was never drawn has theta. Local compute doubles; communication equals FedAvg's,
    bit for bit. lambda = 0: v_k is the model of a device that trains alone.
    A step at rate r moves v_k the share r lambda / (1 + r lambda) of the way to theta. With AdamW's small rates lambda
    must be larger than in an implementation that adds gradients. The default is ours and not tuned.
    With other parts: the objective's terms apply only to the shared model, the mask to both.
    """

    kind: Literal["ditto"] = "ditto"
    strength: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="lambda: pull towards theta; FederatedScope tries 0.05 to 2"
    )

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        session.train()
        trained = session.read()
        session.load(memory or session.initial)
        session.train(pull=Pull(select(session.received, session.shared), self.strength), own_model=True)
        own = session.read()
        session.load(trained)
        return own


class PFedMe(OwnModel):
    """pFedMe (Dinh et al., NeurIPS 2020): w_k stays near its own theta_k = argmin l(theta) + (lambda / 2) |theta -
    w_k|^2.

    From w_k = w as received, for each batch: K steps of theta_k, then w_k <- w_k - eta lambda (w_k - theta_k). The
    server mixes (1 - b) w + b mean_k w_k: b = 1 is the uniform mean; for other b use aggregator {kind: momentum, beta:
    0, rate: b}. A personal evaluation scores theta_k after the device's last participation, a global one w. lambda ->
    infinity: theta_k = w. lambda = 0, K = 1 and follow 1: FedAvg.
    Ours: theta_k's optimiser is the configured one, kept over the round's batches, and the pull is a separate step
    after each of its steps; theta_k is not reset to w between batches. eta lambda is one field, so lambda may be large.
    Personal tensors have no w: they move with theta_k. The log counts steps of w; flops count all K passes.
    Measured on the embedded task (10 devices, 4 a round, 6 rounds, AdamW, one seed; global accuracy): 0.93 with the
    separate pull step at lambda 15, follow 1. With the pull in the optimiser's gradient: 0.56 at lambda 15, follow 0.5
    and 0.87 at lambda 1, follow 1. FedAvg: 0.87, with 5 epochs 0.93. Not measured: follow 0.5, the default, with the
    separate pull step; a fresh optimiser for each batch.
    """

    kind: Literal["pfedme"] = "pfedme"
    strength: float = Field(
        15.0, ge=0, allow_inf_nan=False, description="lambda: pull towards w; FederatedScope uses 15"
    )
    inner_steps: int = Field(5, ge=1, description="K: steps of theta_k on each batch; FederatedScope uses 5")
    follow: float = Field(
        0.5, gt=0, le=1, description="eta lambda: the share of the way to theta_k that w goes after each batch"
    )
    lacks: ClassVar[tuple[Need, ...]] = ("steps",)

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        pull = Pull(select(session.received, session.shared), self.strength, self.follow)
        followed = session.train(repeats=self.inner_steps, pull=pull)
        own = session.read()
        session.load(followed)
        return own
