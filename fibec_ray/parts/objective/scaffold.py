"""SCAFFOLD's control variates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import nn

from fibec_ray.parts.objective.base import Objective
from fibec_ray.tensors import Tensors, under_prefix, weighted_mean, with_prefix


class Scaffold(Objective):
    """SCAFFOLD (Karimireddy et al., ICML 2020), option II: steps with g - c_k + c, g the gradient of the loss.

    After s steps at rate eta: c_k <- c_k - c - delta / (s eta), so that c_k is the mean gradient of the steps. Server:
    c <- c + (|S| / K) mean_S (new c_k - c_k), S the devices of the round, K all. All start at 0, and c stays the mean
    of all c_k. With one device c = c_k: plain SGD. The paper's means are uniform: aggregator {kind: mean, weights:
    uniform}. Shared tensors only; c travels down and the change of c_k up, each as large as a delta.
    Option II reads gradients off the steps of plain SGD: another optimiser is refused. Ours: weight decay counts as
    part of the gradient, and clipping acts on g - c_k + c, which the paper does not clip.
    A device whose update is lost or quarantined keeps its c_k, so that c stays the mean of all c_k.
    """

    kind: Literal["scaffold"] = "scaffold"
    takes_parts: ClassVar[bool] = False

    @property
    def sends(self) -> str:
        return "change of its control variate"

    @property
    def keeps(self) -> str:
        return "control variates (device, server)"

    @property
    def needs_plain_sgd(self) -> bool:
        return True

    def correct(self, params: Mapping[str, nn.Parameter], memory: Tensors, hint: Tensors) -> None:
        for name, control in hint.items():
            grad = params[name].grad
            if grad is not None:
                grad.add_((control - memory[name] if name in memory else control).to(grad))

    def finish(
        self, memory: Tensors, hint: Tensors, delta: Tensors, num_steps: int, lr: float
    ) -> tuple[Tensors, Tensors]:
        change = {name: -(control + delta[name] / (num_steps * lr)) for name, control in hint.items()}
        new = {name: memory[name] + value if name in memory else value for name, value in change.items()}
        return new, with_prefix("control", change)

    def start(self, shared: Tensors) -> Tensors:
        return {name: torch.zeros_like(value) for name, value in shared.items()}

    def absorb(self, hint: Tensors, evidence: Sequence[Tensors], num_devices: int) -> Tensors:
        mean = weighted_mean((1, under_prefix("control", one)) for one in evidence)
        share = len(evidence) / num_devices
        return {name: value + share * mean[name] if name in mean else value for name, value in hint.items()}
