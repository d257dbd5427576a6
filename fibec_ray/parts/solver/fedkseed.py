"""FedKSeed: training without backward passes, along random directions drawn from seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from fibec_ray.directions import COEFFICIENTS, direction
from fibec_ray.parts.part import Need, Setting
from fibec_ray.parts.solver.base import LossOf, Session, Solver
from fibec_ray.tensors import Tensors, drop


class FedKSeed(Solver):
    """FedKSeed (Qin et al., ICML 2024): zeroth-order SGD along K directions that all devices share.

    For each batch: draw a direction j, g = (l(w + eps z_j) - l(w - eps z_j)) / (2 eps), w <- w - eta g z_j. The
    device sends sum eta g for each j, a_j. The server averages a, which averages the models. Needs peft
    seeded_lora, which rebuilds w from a. Two forward passes per step, no backward pass, no memory for activations.

    The paper moves all weights of the model and sends pairs (j, g), without eta. Ours: the directions are those of LoRA
    and the head, and a has a place for every j: 4 K bytes each way. local.clip limits |g|, which is the gradient's norm
    on average. Each j is equally likely (FedKSeed-Pro is left out). Losses are computed without dropout.
    """

    kind: Literal["fedkseed"] = "fedkseed"
    partners: ClassVar[Mapping[str, str]] = {"peft": "seeded_lora"}
    agrees: ClassVar[tuple[str, ...]] = ("num_seeds",)
    silences: ClassVar[Mapping[str, str]] = {"objective": "trains without gradients"}
    num_seeds: int = Field(4096, ge=1, description="K; the same as num_seeds of peft")
    epsilon: float = Field(5e-4, gt=0, allow_inf_nan=False, description="eps: distance of the two losses from w")
    lacks: ClassVar[tuple[Need, ...]] = ("steps", "gradients")

    def unfit_for(self, setting: Setting) -> str | None:
        if setting.optimizer != "sgd" or setting.momentum or setting.weight_decay:
            return (
                "fedkseed takes plain SGD's steps; set local.optimizer=sgd, local.momentum=0, local.weight_decay=0 and "
                f"a fitting local.learning_rate, found {setting.optimizer} with momentum {setting.momentum:g} and "
                f"weight decay {setting.weight_decay:g}"
            )
        return None

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        values = session.read()
        coefficients = values.get(COEFFICIENTS, torch.zeros(1, self.num_seeds))
        weights = drop(values, [COEFFICIENTS])
        rng = session.generator("seeds")

        def step(loss_of: LossOf) -> float:
            number = int(torch.randint(self.num_seeds, (1,), generator=rng))
            way = direction(number, weights)
            ahead, behind = (loss_of(_along(weights, way, sign * self.epsilon)) for sign in (1, -1))
            slope = (ahead - behind) / (2 * self.epsilon)
            if session.clip is not None:
                slope = min(max(slope, -session.clip), session.clip)
            weights.update(_along(weights, way, -session.rate * slope))
            coefficients[0, number] += session.rate * slope
            return (ahead + behind) / 2

        session.descend(step)
        session.load(weights | ({COEFFICIENTS: coefficients} if COEFFICIENTS in values else {}))
        return memory


def _along(values: Tensors, way: Tensors, distance: float) -> Tensors:
    return {name: value + distance * way[name] for name, value in values.items()}
