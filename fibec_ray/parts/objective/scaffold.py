"""SCAFFOLD's control variates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import nn

from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.part import Need, Setting
from fibec_ray.tensors import Tensors, under_prefix, weighted_mean, with_prefix
from fibec_ray.types import Asked, DeviceUpdate, Extra

SLACK = 1e-3
"""Relative rounding difference allowed between device types."""


class Scaffold(Objective):
    """SCAFFOLD (Karimireddy et al., ICML 2020), option II: steps with g - c_k + c, g the gradient of the loss.

    After s steps at rate eta: c_k <- c_k - c - delta / (s eta), so c_k is the mean gradient of the steps. Server: c <-
    c + (|S| / K) mean_S (new c_k - c_k), S the devices of the round, K all devices. All start at 0, and c stays the
    mean of all c_k. With one device c = c_k: plain SGD. The paper averages with equal weights: aggregator {kind: mean,
    weights: uniform}. Only shared tensors; c travels down and the change of c_k up, each as large as a delta.
    Option II computes gradients from the steps of plain SGD, so other optimisers are rejected. Ours: weight decay
    counts as part of the gradient, and clipping acts on g - c_k + c; the paper does not clip. A device whose update is
    lost or quarantined keeps its c_k, so c stays the mean of all c_k.
    """

    kind: Literal["scaffold"] = "scaffold"
    side_by_side: ClassVar[bool] = True
    sends: ClassVar[str] = "change of its control variate"
    keeps: ClassVar[str] = "control variates (device, server)"
    needs: ClassVar[tuple[Need, ...]] = ("whole", "steps", "exact", "fresh", "extras")

    def unfit_for(self, setting: Setting) -> str | None:
        if setting.optimizer != "sgd":
            return (
                "scaffold computes gradients from the steps of plain SGD; set local.optimizer=sgd and a fitting "
                f"local.learning_rate, found {setting.optimizer}"
            )
        if setting.momentum:
            return (
                "scaffold computes gradients from the steps of plain SGD; set local.momentum=0, found "
                f"{setting.momentum}"
            )
        return None

    def correct(self, params: Mapping[str, nn.Parameter], memory: Tensors, control: Tensors) -> None:
        for name, value in control.items():
            grad = params[name].grad
            if grad is not None:
                grad.add_((value - memory[name] if name in memory else value).to(grad))

    def finish(
        self, memory: Tensors, control: Tensors, delta: Tensors, num_steps: int, lr: float
    ) -> tuple[Tensors, Tensors]:
        change = _change(control, delta, num_steps * lr)
        new = {name: memory[name] + value if name in memory else value for name, value in change.items()}
        return new, with_prefix("control", change)

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        return {f"control/{name}": Extra(tuple(value.shape), value.dtype) for name, value in asked.control.items()}

    def fault(self, asked: Asked, update: DeviceUpdate) -> str | None:
        """The change must follow from the delta, so it is checked against it."""
        if not update.num_steps:
            return "the update took no steps, but a control variate is their mean gradient"
        expected = _change(asked.control, update.delta, update.num_steps * update.learning_rate)
        for name, value in expected.items():
            room = (
                SLACK * max(float(value.abs().max()), float(asked.control[name].abs().max())) if value.numel() else 0.0
            )
            if float((update.extras[f"control/{name}"] - value).double().norm()) > room * value.numel() ** 0.5:
                return f"the change of the control variate of '{name}' does not follow from the update"
        return None

    def absorb(self, shared: Tensors, control: Tensors, extras: Sequence[Tensors], num_devices: int) -> Tensors:
        control = control or {name: torch.zeros_like(value) for name, value in shared.items()}
        mean = weighted_mean((1, under_prefix("control", one)) for one in extras)
        share = len(extras) / num_devices
        return {name: value + share * mean[name] if name in mean else value for name, value in control.items()}


def _change(control: Tensors, delta: Tensors, travelled: float) -> Tensors:
    """-c - delta / (s eta); zeros if no step was taken. travelled: s eta."""
    if not travelled:
        return {name: torch.zeros_like(value) for name, value in control.items()}
    return {name: -(value + delta[name] / travelled) for name, value in control.items()}
