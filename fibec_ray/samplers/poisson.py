"""Draw every device independently."""

from __future__ import annotations

from typing import ClassVar, Literal

from fibec_ray.samplers.base import Draw, Sampler


class Poisson(Sampler):
    """Draw each device independently with probability q = cohort_size / num_devices.

    Cohorts vary in size, with mean `cohort_size` and variance K q (1 - q) over K devices; a round may have none. This
    is the sampling that accountants of differential privacy assume (McMahan et al., ICLR 2018). Ours: a device that is
    not available is left out, and the others keep their probability.
    """

    kind: Literal["poisson"] = "poisson"
    accounting: ClassVar[Literal["fixed", "poisson"] | None] = "poisson"
    has_fixed_size: ClassVar[bool] = False

    def draw(self, draw: Draw) -> tuple[int, ...]:
        # One number for each device of the federation, so that a device's luck does not depend on who else is there.
        lucky = draw.rng.random(draw.num_devices) < draw.count / draw.num_devices
        return tuple(device for device in draw.available if lucky[device])
