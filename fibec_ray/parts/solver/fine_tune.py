"""Fine-tuning before evaluation: each device tunes the shared model just before it is scored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fibec_ray.parts.part import Need
from fibec_ray.parts.solver.base import Session, Solver


class FineTune(Solver):
    """Trains like `single`; before a personal evaluation each device tunes the model on its training data for some
    epochs.

    FedBABU (Oh et al., ICLR 2022) is this with a head that no round trains: sharing body, a mask that freezes personal
    tensors (ratio 0), and the head tuned before evaluation, on every device. Without the mask and with all tensors it
    is FedAvg with local fine-tuning.
    Each evaluation tunes the current model afresh. The result is not stored or sent, and its work is not logged. Tuning
    uses all batches of the device and the plain loss, and ignores the mask.
    """

    kind: Literal["fine_tune"] = "fine_tune"
    tensors: Literal["all", "personal"] = Field(
        "all", description="tensors to tune: all, or the personal ones (the head)"
    )
    epochs: int = Field(1, ge=1, description="epochs over the device's training data before each evaluation")
    rate: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="learning rate of tuning, as a multiple of local.learning_rate before decay",
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("personal",) if self.tensors == "personal" else ()

    def tune(self, session: Session) -> None:
        moves = None if self.tensors == "all" else session.personal
        session.train(moves=moves, epochs=self.epochs, rate=self.rate, own_model=True)
