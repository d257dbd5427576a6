"""FedDPA: a shared and an own adapter on each device, mixed for each test sample.

Shapes: B samples of a batch, r rank, `in`/`out` features of an adapted weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.low_rank import A, B, pairs
from fibec_ray.parts.part import Need
from fibec_ray.parts.solver.base import Session, Solver
from fibec_ray.tensors import Tensors


class FedDpa(Solver):
    """FedDPA-T (Yang et al., NeurIPS 2024): FedAvg, plus a second adapter that never leaves its device.

    A device trains the shared adapter as in FedAvg. Then it trains its own on the same batches, from (1 - alpha) g +
    alpha l: g is the shared adapter as received, l its own adapter of last time (at first, the trained shared one).
    A personal evaluation mixes the outputs of both for each test sample x: h = W x + (1 - a) s B_g A_g x + a s B_l A_l
    x, with a = lambda mean_j cos(f(x), f(x_j)), cut to [0, 1], over some training samples x_j of the device. So a
    sample unlike the device's own data gets the shared adapter. A device that was never drawn has only the shared one.

    Ours: f is the mean of the last states over a sample's real tokens, with the shared adapter. A trained head is mixed
    in the same way, weights and bias. The start of the own adapter is that of a public implementation (FedLLM-Factory).
    Local compute doubles; communication equals FedAvg's.
    """

    kind: Literal["feddpa"] = "feddpa"
    partners: ClassVar[Mapping[str, str]] = {"peft": "lora"}
    alpha: float = Field(0.5, ge=0, le=1, description="share of the own adapter's last values in its start")
    scale: float = Field(
        0.5, ge=0, allow_inf_nan=False, description="lambda: largest share of the own adapter (not tuned)"
    )
    samples: int = Field(5, ge=1, description="training samples that a test sample is compared with; 5 in the paper")
    needs: ClassVar[tuple[Need, ...]] = ("shared", "lora")
    keeps: ClassVar[str] = "own adapter (device)"

    @property
    def num_references(self) -> int:
        return self.samples

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        session.train()
        trained = session.read()
        last = memory or trained
        session.load({name: torch.lerp(g, last[name], self.alpha) for name, g in session.received.items()})
        session.train(own_model=True)
        own = session.read()
        session.load(trained)
        return own

    def mixed(self, shared: Tensors, memory: Tensors, likeness: Tensor) -> Tensors:
        """LoRA of rank 2 r: A = [A_g; A_l] and B = [(1 - a) B_g, a B_l] for each sample; the head in between."""
        shares = (self.scale * likeness).clamp(0, 1)
        found = {name: _between(value, memory[name].to(value), shares) for name, value in shared.items()}
        for x in pairs(shared):
            a = torch.cat([shared[x + A], memory[x + A].to(shared[x + A])])
            b, own = shared[x + B], memory[x + B].to(shared[x + B])
            found[x + A] = a.expand(len(shares), *a.shape)
            found[x + B] = torch.cat([_times(b, 1 - shares), _times(own, shares)], 2)
        return found


def _times(value: Tensor, shares: Tensor) -> Tensor:
    """The value times each share, (B, *shape)."""
    return value * shares.view(-1, *[1] * value.dim())


def _between(value: Tensor, own: Tensor, shares: Tensor) -> Tensor:
    return _times(value, 1 - shares) + _times(own, shares)
