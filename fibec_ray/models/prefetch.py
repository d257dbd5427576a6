"""Copies weights ahead of their use.

On a GPU two weights are present at a time: the one in use, and the one being copied on a separate stream
(`side_stream.py`). What is fetched ahead, and when, does not depend on the device.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import torch
from torch import Tensor

from fibec_ray.models.side_stream import SideStream

CONTEXT = 12
"""Number of recent weights that predict the next. More than a block has products, so recomputed blocks differ from
first passes.
"""


class Copier(Protocol):
    """Copies weights to the device that computes. At most two copies are in use or under way at a time."""

    def start(self, weight: Tensor) -> Any:
        """Start to copy a weight to the device."""

    def finish(self, started: Any) -> Tensor:
        """Return the copy. The caller's next computation waits for it."""

    def release(self, started: Any) -> None:
        """Allow overwriting the copy once the work queued so far is done."""


class Prefetcher:
    """Call `fetch` for a weight, queue the work that needs it, then call `ahead`.

    The prediction is the weight that came next when the latest `context` weights last followed each other. This
    distinguishes forward passes, backward passes and recomputed blocks without further information. A wrong guess costs
    a copy. Weights belong to one model: the same tensors in every pass.
    """

    def __init__(self, copier: Copier, context: int = CONTEXT):
        self.num_fetched = self.num_foreseen = self.num_ahead = 0
        self._copier = copier
        self._followers: dict[tuple[int, ...], Tensor] = {}
        self._newest = deque([0] * context, context)
        self._ahead: tuple[Tensor, Any] | None = None
        self._in_use: Any = None

    def fetch(self, weight: Tensor) -> Tensor:
        """Return the weight on the device that computes."""
        foreseen = self._ahead is not None and self._ahead[0] is weight
        started = self._ahead[1] if self._ahead is not None and foreseen else self._copier.start(weight)
        self.num_fetched, self.num_foreseen, self._ahead = self.num_fetched + 1, self.num_foreseen + foreseen, None
        self._followers[tuple(self._newest)] = weight
        self._newest.append(id(weight))
        self._in_use = started
        return self._copier.finish(started)

    def ahead(self) -> None:
        """Give back the weight in use, and start copying the one that will be fetched next, if known."""
        self._copier.release(self._in_use)
        self._in_use = None
        following = self._followers.get(tuple(self._newest))
        if following is not None:
            self._ahead = following, self._copier.start(following)
            self.num_ahead += 1


class InPlace:
    """The copier of a device that computes where the weights are."""

    def start(self, weight: Tensor) -> Tensor:
        return weight

    def finish(self, started: Tensor) -> Tensor:
        return started

    def release(self, started: Tensor) -> None:
        """Do nothing, since there is no copy."""


def prefetcher(device: torch.device) -> Prefetcher:
    """The prefetcher for a device."""
    return Prefetcher(SideStream(device) if device.type == "cuda" else InPlace())
