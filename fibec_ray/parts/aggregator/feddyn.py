"""FedDyn's server half; the device half is the objective of the same name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.tensors import Tensors, under_prefix, weighted_mean, with_prefix
from fibec_ray.types import DeviceUpdate


class FedDyn(Aggregator):
    """FedDyn (Acar et al., ICLR 2021): h <- h - a (1/K) sum_S delta_k from h = 0, then theta <- mean_S theta_k - h / a.

    S: devices of the round, K: all devices; means are uniform. Needs objective feddyn with the same alpha: h is the
    mean of its g_k.
    """

    kind: Literal["feddyn"] = "feddyn"
    partners: ClassVar[Mapping[str, str]] = {"objective": "feddyn"}
    agrees: ClassVar[tuple[str, ...]] = ("alpha",)
    can_be_wrapped: ClassVar[bool] = False  # h and the g_k are right only at this theta
    alpha: float = Field(0.01, gt=0, allow_inf_nan=False, description="a; the paper tries 0.001 to 0.1")
    keeps: ClassVar[str] = "h (server)"

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        zeros = {name: torch.zeros_like(value) for name, value in shared.items()}
        return {"num_devices": torch.tensor(num_devices)} | with_prefix("h", zeros)

    def combine(self, state: Tensors, updates: Iterable[DeviceUpdate]) -> tuple[Tensors, Tensors]:
        count = 0

        def deltas() -> Iterator[tuple[float, Tensors]]:
            nonlocal count
            for update in updates:
                count += 1
                yield 1, update.delta

        mean = weighted_mean(deltas())
        if not mean:
            return {}, state
        num_devices, h = state["num_devices"], under_prefix("h", state)
        share = count / int(num_devices)
        h = {name: h[name] - self.alpha * share * value for name, value in mean.items()}
        step = {name: value - h[name] / self.alpha for name, value in mean.items()}
        return step, {"num_devices": num_devices} | with_prefix("h", h)
