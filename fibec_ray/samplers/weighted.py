"""Draw devices with more data more often."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fibec_ray.samplers.base import Draw, Sampler


class Weighted(Sampler):
    """Draw devices without replacement, each time with probability proportional to the training samples of those left.

    The aggregator `mean` also weights updates by samples, so large devices count more in two ways. Li et al. (ICLR
    2020, "On the Convergence of FedAvg on Non-IID Data", scheme I) draw with replacement and average equally; ours:
    without replacement, as in all samplers here.
    """

    kind: Literal["weighted"] = "weighted"

    def draw(self, draw: Draw) -> tuple[int, ...]:
        sizes = np.array([draw.sizes[device] for device in draw.available], dtype=np.float64)
        count = min(draw.count, len(sizes))
        chosen = draw.rng.choice(len(sizes), size=count, replace=False, p=sizes / sizes.sum()) if count else ()
        return tuple(draw.available[int(i)] for i in chosen)
