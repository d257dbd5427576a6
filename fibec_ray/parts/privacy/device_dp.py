"""Device-level differential privacy: DP-FedAvg, with fixed or adaptive clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.errors import ConfigError
from fibec_ray.parts.part import Need, Setting
from fibec_ray.parts.privacy import accounting
from fibec_ray.parts.privacy.base import Exposure
from fibec_ray.parts.privacy.budgeted import Budgeted
from fibec_ray.parts.privacy.clipping import clipped
from fibec_ray.tensors import Tensors
from fibec_ray.types import DeviceUpdate, Extra

BELOW = "privacy/below"
"""Name of the extra: 1 if the device's update was not clipped, else 0."""
SERVER = -1
"""Device number of the one update that an aggregator sees."""
CLIP = "clip"
"""Name of the norm C in the server's state and in what devices receive."""


class DeviceDp(Budgeted):
    """DP-FedAvg (McMahan et al., ICLR 2018): the aggregator sees (sum_k clip(delta_k) + N(0, (z C)^2)) / m.

    clip(x) = x min(1, C / |x|_2) over all shared tensors together. m is the expected cohort size, not the number of
    updates that arrived. All devices count equally, whatever their number of samples. So the aggregator must be
    `mean`, or a server optimiser on it. z = 0 without clipping is FedAvg with uniform weights.

    noise_at: server. Devices clip. The server decodes their updates, clips again and adds the noise.

    noise_at: device. Each device adds N(0, (z C)^2 / m) to its clipped update, so that m updates have the same noise in
    sum. If updates are lost, the server adds the missing noise. It cannot clip again, and needs cohorts of a fixed
    size. The guarantee is the same for someone who sees only sums of updates, as with secure aggregation.

    quantile: adaptive clipping (Andrew et al., NeurIPS 2021). A device also sends b_k = 1 if |delta_k| <= C, else 0.
    After each round C <- C exp(-clip_rate (b - quantile)), b = (sum_k (b_k - 1/2) + N(0, s^2)) / m + 1/2, with
    s = count_noise. The noise on deltas is z' = (z^-2 - (2 s)^-2)^(-1/2), so that z still accounts for both.
    """

    kind: Literal["device_dp"] = "device_dp"
    noise_at: Literal["server", "device"] = Field("server", description="who adds the noise")
    quantile: float | None = Field(
        None, gt=0, lt=1, description="adapt C so that this share of updates is not clipped; null: C stays as it is"
    )
    clip_rate: float = Field(0.2, gt=0, le=1, description="step of log C with quantile; 0.2 in the paper")
    count_noise: float | None = Field(
        None, gt=0, description="s, noise on the number of updates within C, with quantile; null: m / 20, at least z"
    )

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Self:
        if self.quantile is None:
            fields = type(self).model_fields
            for name in ("clip_rate", "count_noise"):
                if getattr(self, name) != fields[name].get_default():
                    raise ValueError(f"{name} has an effect only with quantile; set quantile, or leave {name} out")
            return self
        if self.noise_at == "device":
            raise ValueError("quantile needs the server's noise on its counts; set noise_at: server, or quantile: null")
        if self.clip is None:
            raise ValueError("quantile adapts clip, which is null; set clip to where it starts")
        return self

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("shared", *(("one_rank", "exact") if self.noise_at == "device" and self.is_noisy else ()))

    @property
    def lacks(self) -> tuple[Need, ...]:
        return ("updates", "weights", "extras", "samples")

    def unfit_for(self, setting: Setting) -> str | None:
        if not self.is_noisy:
            return None
        if setting.sampling is None:
            return (
                "device_dp can account for random cohorts only; set sampler to uniform or poisson, with schedule: sync "
                "and devices that are always available, or method.privacy.noise=0"
            )
        if self.noise_at == "device" and setting.sampling != "fixed":
            return (
                "device_dp with noise_at: device needs cohorts of a fixed size, since the noise would show their size; "
                "set sampler: uniform, or method.privacy.noise_at=server"
            )
        return None

    @property
    def sends(self) -> str:
        return "whether its update was clipped" if self.quantile is not None else ""

    @property
    def keeps(self) -> str:
        return "clipping norm (server)" if self.quantile is not None else ""

    # --- device half

    def protect(self, delta: Tensors, sent: Tensors, cohort_size: int, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        most = self._clip(sent)
        bounded = clipped(delta, most)
        extras = {} if self.quantile is None else {BELOW: torch.tensor([float(bounded is delta)])}
        if self.noise_at == "device" and self.is_noisy:
            scale = self._scale(cohort_size, most) / math.sqrt(cohort_size)
            bounded = {name: value + gaussian(value, scale, rng).to(value) for name, value in bounded.items()}
        return bounded, extras

    # --- server half

    def start(self) -> Tensors:
        return {} if self.quantile is None else {CLIP: torch.tensor([self.clip], dtype=torch.float64)}

    def sent(self, state: Tensors) -> Tensors:
        return state

    def expected_extras(self) -> Mapping[str, Extra]:
        return {} if self.quantile is None else {BELOW: Extra((1,), least=0)}

    def release(
        self, state: Tensors, updates: Iterable[DeviceUpdate], like: Tensors, cohort_size: int, rng: torch.Generator
    ) -> tuple[Iterable[DeviceUpdate], Tensors]:
        most, count, below = self._clip(state), 0, 0.0
        sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in like.items()}
        for update in updates:
            delta = clipped(update.delta, most) if self.noise_at == "server" else update.delta
            for name, value in delta.items():
                sums[name] += value.double()
            count += 1
            below += float(update.extras[BELOW].clamp(max=1.0)) - 0.5 if BELOW in update.extras else 0.0
        missing = 1.0 if self.noise_at == "server" else max(0.0, 1 - count / cohort_size)
        if self.is_noisy and missing:
            scale = self._scale(cohort_size, most) * math.sqrt(missing)
            sums = {name: value + gaussian(value, scale, rng) for name, value in sums.items()}
        mean = {name: (value / cohort_size).to(like[name]) for name, value in sums.items()}
        return [DeviceUpdate(SERVER, 1, 1, mean)], self._adapted(state, below, cohort_size, rng)

    def _adapted(self, state: Tensors, below: float, cohort_size: int, rng: torch.Generator) -> Tensors:
        """The state with the next C. below: sum_k (b_k - 1/2)."""
        if self.quantile is None:
            return state
        spread = self._count_noise(cohort_size) if self.is_noisy else 0.0
        share = (below + float(gaussian(state[CLIP], spread, rng))) / cohort_size + 0.5
        return {CLIP: state[CLIP] * math.exp(-self.clip_rate * (share - self.quantile))}

    def _clip(self, known: Tensors) -> float | None:
        """C: of the server's state or of what devices receive, if it adapts."""
        return self.clip if self.quantile is None else float(known[CLIP])

    def _scale(self, cohort_size: int, clip: float | None) -> float:
        """Standard deviation of the noise on the sum of the updates: z C, or z' C with adaptive clipping."""
        assert clip is not None, "noise needs clipping"
        if self.quantile is None:
            return self.multiplier * clip
        return clip / math.sqrt(self.multiplier**-2 - (2 * self._count_noise(cohort_size)) ** -2)

    def _count_noise(self, cohort_size: int) -> float:
        return self.count_noise or max(cohort_size / 20, self.multiplier)

    # --- accounting

    def calibrated(self, exposure: Exposure) -> Self:
        found = super().calibrated(exposure)
        if found.quantile is not None and found.count_noise is not None and 2 * found.count_noise <= found.multiplier:
            raise ConfigError(
                f"method.privacy: count_noise {found.count_noise:g} must be above half of the noise, which is "
                f"{found.multiplier:.4g}; raise it, or leave it out"
            )
        return found

    def account(self, noise: float, exposure: Exposure, rounds: int) -> float:
        devices, cohort = exposure.num_devices, exposure.cohort_size
        if exposure.sampling == "poisson":
            return accounting.poisson(noise, cohort / devices, self.delta, rounds)
        return accounting.fixed_size(noise, devices, cohort, self.delta, rounds)

    def guarantee(self, exposure: Exposure) -> str:
        devices, cohort = exposure.num_devices, exposure.cohort_size
        if not self.is_noisy:
            return ""
        if cohort >= devices:
            neighbours = "whether one device sends its update or zero; all take part in each round"
        elif exposure.sampling == "poisson":
            neighbours = f"one device more or less; each takes part with probability {cohort / devices:g}"
        else:
            neighbours = f"one device replaced by another; {cohort} of {devices} are drawn for each round"
        return f"of a device, delta {self.delta:g}, noise {self.multiplier:.4g}: {neighbours}"


def gaussian(like: Tensor, scale: float, rng: torch.Generator) -> Tensor:
    """Noise N(0, scale^2) in the shape of a tensor, float64."""
    return scale * torch.randn(like.shape, generator=rng, dtype=torch.float64)
