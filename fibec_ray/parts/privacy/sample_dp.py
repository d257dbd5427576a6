"""Sample-level differential privacy: DP-SGD on each device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from fibec_ray.parts.part import Need
from fibec_ray.parts.privacy import accounting
from fibec_ray.parts.privacy.base import Exposure, StepGuard
from fibec_ray.parts.privacy.budgeted import Budgeted


class SampleDp(Budgeted):
    """DP-SGD (Abadi et al., CCS 2016) in each local step: the gradient is (sum_i clip(g_i) + N(0, (z C)^2)) / B.

    g_i is the exact gradient of sample i over all tensors that move, clip(g) = g min(1, C / |g|_2), B the batch's
    size. Terms of the objective that depend on no sample, such as FedProx's, are added afterwards. Then come
    `local.clip` and the optimiser. The aggregator weights devices as without privacy.

    Batches are fixed and shuffled, not drawn by Poisson sampling. Each local epoch shows a sample once, so it counts as
    one Gaussian mechanism on that sample, without amplification by sampling. The device that has trained in the most
    rounds decides epsilon. Neighbours: a sample's gradient is replaced by zero. z = 0 and clip: null is plain SGD.
    Ours: this accounting, which is valid for fixed batches and anyone who sees the devices' updates.
    """

    kind: Literal["sample_dp"] = "sample_dp"
    partners: ClassVar[Mapping[str, str]] = {"solver": "single"}

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("per_sample",)

    @property
    def lacks(self) -> tuple[Need, ...]:
        return ("samples", "gradients")

    def guard(self) -> StepGuard | None:
        return None if self.clip is None else StepGuard(self.clip, self.multiplier)

    def account(self, noise: float, exposure: Exposure, rounds: int) -> float:
        visits = exposure.visits(rounds)
        return accounting.gaussian(noise, self.delta, visits) if visits else 0.0

    def guarantee(self, exposure: Exposure) -> str:
        if not self.is_noisy:
            return ""
        visits = exposure.visits(exposure.rounds)
        return (
            f"of a sample, delta {self.delta:g}, noise {self.multiplier:.4g}: whether its gradients are used or zero; "
            f"at most {visits} local epochs of one device"
        )
