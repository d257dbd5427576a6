"""Which weights of a base lie on which GPU of an actor that has several (`backend: spread`).

All computing is on the first GPU, and the others hold what it has no room for: the adapter, its gradients and all that
methods make of them stay on one device, and every method gives the bits that it gives on one GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Shelves:
    """first: bytes that the GPU which computes has for the base; others: the same of the others, in their order.

    What is not asked for here, such as embeddings and norms, is on the first one: they come off it beforehand.
    """

    def __init__(self, first: int, others: Sequence[int]):
        self._free = [first, *others]

    def index(self, num_bytes: int) -> int:
        """The first GPU that has room, which it then has no more."""
        for i, free in enumerate(self._free):
            if num_bytes <= free:
                self._free[i] -= num_bytes
                return i
        return 0  # to the last bytes of memory: torch says so if there is no room

    def place(self, weight: Tensor) -> Tensor | None:
        """The weight on the GPU where it stays; None: on the one that computes."""
        index = self.index(weight.nbytes)
        return weight.to(torch.device("cuda", index)) if index else None
