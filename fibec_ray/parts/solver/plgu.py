"""PLGU: the shared model is trained from a point of higher loss."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fibec_ray.parts.part import Need
from fibec_ray.parts.solver.base import Session, Solver
from fibec_ray.tensors import Tensors

LEAST_NORM = 1e-7
"""added to a gradient's norm; a co-author's code of FibecFed uses this value"""


class LayerPerturbation(Solver):
    """PLGU (Qu et al., CVPR 2023): personalise locally, generalise universally, by layer-wise sharpness-aware training.

    Before it trains, a device moves each shared tensor w by rho g / (|g| + 1e-7), in the direction in which the loss of
    its data rises fastest. g is the mean gradient of the round's batches at the received values. Personal tensors do
    not move. rho = 0 is FedAvg with one more pass over the data.
    This is the form in a co-author's code of FibecFed: tensors move once a round and never back. The paper's
    algorithm (LWSAM) takes the gradient at a perturbed point and applies it at the original one. Ours: g is computed
    without dropout, and personal tensors and entries that a mask freezes do not move.
    """

    kind: Literal["plgu"] = "plgu"
    radius: float = Field(0.05, ge=0, allow_inf_nan=False, description="rho: distance that each shared tensor moves")
    needs: ClassVar[tuple[Need, ...]] = ("shared",)
    lacks: ClassVar[tuple[Need, ...]] = ("steps",)

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        gradients, values = session.gradient(), session.read()
        moved = {name: self._uphill(values[name], g) for name, g in gradients.items() if name in session.shared}
        session.load(values | moved)
        session.train()
        return memory

    def _uphill(self, value: Tensor, gradient: Tensor) -> Tensor:
        """The value after a step of length rho along the gradient; unchanged if the gradient is 0."""
        return value + gradient * (self.radius / (gradient.norm() + LEAST_NORM))
