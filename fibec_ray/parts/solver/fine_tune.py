"""Fine-tuning before evaluation: the shared model becomes the device's own for as long as it is scored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fibec_ray.parts.part import Need
from fibec_ray.parts.solver.base import Session, Solver


class FineTune(Solver):
    """Trains as `single`; before a personal evaluation the device tunes the model on its training data for some epochs.

    FedBABU (Oh et al., ICLR 2022) is this with a head that no round moves: sharing body, a mask that holds what is
    personal (ratio 0), and the head tuned before evaluation, on every device, drawn or not. Without the mask and with
    all tensors it is FedAvg with local fine-tuning.
    Tuning starts anew at each evaluation from the model as it is then: nothing of it is stored, sent or logged, and its
    work neither. It takes all of the device's batches and the plain loss, and no mask holds anything.
    """

    kind: Literal["fine_tune"] = "fine_tune"
    tensors: Literal["all", "personal"] = Field("all", description="what is tuned: all, or the head (what is personal)")
    epochs: int = Field(1, ge=1, description="passes over the device's training data before each evaluation")
    rate: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="learning rate of tuning, in units of local.learning_rate undecayed"
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("personal",) if self.tensors == "personal" else ()

    def tune(self, session: Session) -> None:
        moves = None if self.tensors == "all" else session.personal
        session.train(moves=moves, epochs=self.epochs, rate=self.rate, own_model=True)
