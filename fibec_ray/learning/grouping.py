"""Which devices train together, as the lanes of one batched forward pass.

A group depends on its devices and their sample counts alone, never on times or actors: the bits that its lanes give do
depend on the width of the batch, and must be the same wherever the group runs, and however often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Group = tuple[int, ...]
"""Devices that train together, the largest first."""


def lane_groups(devices: Sequence[int], num_samples: Sequence[int], lanes: int) -> list[Group]:
    """As few groups of at most `lanes` devices as it takes, equal to within one device, the largest devices first.

    num_samples: of each of `devices`. Devices of similar size stand side by side: a lane that has run out of batches
    waits for the others of its group.
    """
    size = dict(zip(devices, num_samples, strict=True))
    ordered = sorted(devices, key=lambda device: (-size[device], device))
    count = math.ceil(len(ordered) / lanes)
    ends = [len(ordered) * i // count for i in range(count + 1)] if count else [0]
    return [tuple(ordered[start:end]) for start, end in zip(ends, ends[1:], strict=False)]
