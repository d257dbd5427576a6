"""AdaLoRA's device half: near-orthogonal factors, and a score for each rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors, under_prefix, weighted_mean, with_prefix
from fibec_ray.types import Asked, DeviceUpdate, Extra

Q, P, E = ".lora_A", ".lora_B", ".lora_E"


class AdaLoraImportance(Objective):
    """AdaLoRA (Zhang et al., ICLR 2023), device half: adds weight * mean |Q Q^T - I|_F, |P^T P - I|_F over the factors.

    It scores rank i of each adapted weight by S(e_i) + mean_j S(Q_ij) + mean_j S(P_ji), with S(w) = I * U. I is the
    mean of |w grad w| over the steps, decaying by beta1; U is the mean of |I - |w grad w||, decaying by beta2. I and U
    stay on the device. Ours: devices send only the scores, and the server averages them with equal weights. With weight
    0 and a budget that does not shrink this is FedAvg on W + s P diag(e) Q.
    """

    kind: Literal["adalora"] = "adalora"
    side_by_side: ClassVar[bool] = True
    partners: ClassVar[Mapping[str, str]] = {"peft": "adalora"}
    needs: ClassVar[tuple[Need, ...]] = ("fresh", "extras")
    weight: float = Field(0.5, ge=0, description="weight of the orthogonality term; peft's default")
    beta1: float = Field(0.85, ge=0, lt=1, description="decay of the mean sensitivity I; peft's default")
    beta2: float = Field(0.85, ge=0, lt=1, description="decay of its deviation U; peft's default")
    sends: ClassVar[str] = "scores of its ranks"
    keeps: ClassVar[str] = "sensitivities (device), mean scores (server)"

    def penalty(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor | None:
        grams = [params[x + Q] @ params[x + Q].T for x in _weights(params)]
        grams += [params[x + P].T @ params[x + P] for x in _weights(params)]
        if not grams or not self.weight:
            return None
        return self.weight * torch.stack([(g - torch.eye(len(g)).to(g)).norm() for g in grams]).mean()

    @torch.no_grad()
    def correct(self, params: Mapping[str, nn.Parameter], memory: Tensors, control: Tensors) -> None:
        """Update the sensitivities in the memory; the gradients stay unchanged."""
        for name in (x + part for x in _weights(params) for part in (Q, P, E)):
            grad = params[name].grad
            if grad is None:
                continue
            now = (params[name] * grad).abs().float()
            mean = memory.get(f"mean/{name}", torch.zeros_like(now))
            mean = self.beta1 * mean + (1 - self.beta1) * now
            deviation = memory.get(f"deviation/{name}", torch.zeros_like(now))
            memory[f"mean/{name}"] = mean
            memory[f"deviation/{name}"] = self.beta2 * deviation + (1 - self.beta2) * (now - mean).abs()

    def finish(
        self, memory: Tensors, control: Tensors, delta: Tensors, num_steps: int, lr: float
    ) -> tuple[Tensors, Tensors]:
        means, deviations = under_prefix("mean", memory), under_prefix("deviation", memory)
        entry = {name: mean * deviations[name] for name, mean in means.items()}
        # A weight that the loss does not depend on scores 0.
        scores = {name: torch.zeros_like(value) for name, value in delta.items() if name.endswith(E)}
        scores |= {
            x + E: entry[x + E] + entry[x + Q].mean(1, True) + entry[x + P].mean(0)[:, None]
            for x in _weights(entry)
            if x + E in delta
        }
        return memory, with_prefix("scores", scores)

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        entries = {name: tuple(value.shape) for name, value in asked.shared.items() if name.endswith(E)}
        return {f"scores/{name}": Extra(shape, least=0) for name, shape in entries.items()}

    def absorb(self, shared: Tensors, control: Tensors, extras: Sequence[Tensors], num_devices: int) -> Tensors:
        found = weighted_mean((1, under_prefix("scores", one)) for one in extras)
        return with_prefix("scores", found) if found else control


def _weights(tensors: Mapping[str, Tensor]) -> list[str]:
    """The prefixes X of X.lora_A, X.lora_E and X.lora_B."""
    return [name.removesuffix(E) for name in tensors if name.endswith(E)]
