"""FedPepTAO's server: momentum on differences of steps, corrected for each device's drift."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field

from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.tensors import Tensors, add, clone, under_prefix, weighted_mean, with_prefix
from fibec_ray.types import DeviceUpdate


class PepTao(Aggregator):
    """FedPepTAO (Che et al., EMNLP 2023), following its code: the mean, then a step of adaptive momentum.

    theta_k <- mean - rate v_k with v_k = beta v + (1 - beta) G + c - c_k for each device of the round; theta and v
    become their means, weighted by n_k. G is the last round's step minus this one's (gradient: step: minus this one's),
    so the first round is FedAvg. After each later round rate <- max(decay rate, least_rate). c_k and c are SCAFFOLD's
    control variates, c_k <- c_k - c - delta_k / (s_k lr), kept on the server: devices send as much as in FedAvg. c
    moves by the cohort's share of the devices times the mean change of c_k.

    The paper resets momentum on devices each round; its code does not, and neither do we. With an adaptive optimiser a
    delta is not a sum of gradients, so c_k is only an approximation, as in the code. Ours: theta starts from the mean
    (the code leaves the starting point open).
    """

    kind: Literal["peptao"] = "peptao"
    can_be_wrapped: ClassVar[bool] = False
    rate: float = Field(0.05, gt=0, allow_inf_nan=False, description="initial server learning rate of the momentum")
    decay: float = Field(0.99, gt=0, le=1, description="factor on the rate after each round")
    least_rate: float = Field(1e-4, ge=0, allow_inf_nan=False, description="lower limit of the rate")
    beta: float = Field(0.9, ge=0, lt=1, description="decay of v; 0: no memory")
    gradient: Literal["difference", "step"] = Field(
        "difference", description="G: difference of the last two rounds' steps (the code), or minus this round's step"
    )
    keeps: ClassVar[str] = "momentum, every device's control variate (server)"

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        zeros = {name: torch.zeros_like(value) for name, value in shared.items()}
        numbers = {"rate": torch.tensor(self.rate, dtype=torch.float64), "devices": torch.tensor(num_devices)}
        return numbers | with_prefix("v", zeros) | with_prefix("c", clone(zeros))

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        held = [update for update in updates if update.num_samples]
        if not held:
            return {}, state
        mean = weighted_mean((update.num_samples, update.delta) for update in held)
        step, new = mean, with_prefix("last", mean)
        if any(name.startswith("last/") for name in state):
            momentum = weighted_mean((update.num_samples, self._momentum(state, mean, update)) for update in held)
            rate = float(state["rate"])
            step = {name: value - rate * momentum[name] for name, value in mean.items()}
            new |= with_prefix("v", momentum)
            new["rate"] = torch.tensor(max(self.decay * rate, self.least_rate), dtype=torch.float64)
        return step, state | new | self._controls(state, held)

    def _momentum(self, state: Tensors, mean: Tensors, update: DeviceUpdate) -> Tensors:
        """v_k of one device."""
        v, c, last = (under_prefix(word, state) for word in ("v", "c", "last"))
        own = under_prefix(f"control/{update.device}", state)
        found = {}
        for name, value in mean.items():
            gradient = last[name] - value if self.gradient == "difference" else -value
            drift = c[name] - own[name] if name in own else c[name]
            found[name] = self.beta * v[name] + (1 - self.beta) * gradient + drift
        return found

    def _controls(self, state: Tensors, held: list[DeviceUpdate]) -> Tensors:
        """The new c_k of the round's devices and the new c."""
        c, new, changes = under_prefix("c", state), dict[str, torch.Tensor](), []
        for update in held:
            scale = max(update.num_steps, 1) * update.learning_rate or 1.0
            change = {name: -(c[name] + value / scale) for name, value in update.delta.items()}
            own = under_prefix(f"control/{update.device}", state)
            new |= with_prefix(f"control/{update.device}", add(change, own) if own else change)
            changes.append((update.num_samples, change))
        share = len(held) / int(state["devices"])
        moved = {name: share * value for name, value in weighted_mean(changes).items()}
        return new | with_prefix("c", add(moved, c))
