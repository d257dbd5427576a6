"""The largest entries of an update, with their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.parts.part import Need
from fibec_ray.parts.uplink.codec import Compensated, sizes_of
from fibec_ray.tensors import Tensors
from fibec_ray.types import Extra


class TopK(Compensated):
    """Sends the k entries of largest magnitude over all tensors together (Stich et al., NeurIPS 2018), others as zero.

    k = density n, rounded down, at least 1. 8 bytes for each entry sent: value and place. density 1 is FedAvg at twice
    the bytes. Entries that are not sent stay on the device and are added to its next update.
    """

    kind: Literal["topk"] = "topk"
    density: float = Field(0.05, gt=0, le=1, description="share of the entries that are sent")

    @property
    def lacks(self) -> tuple[Need, ...]:
        return ("exact", "dense") if self.density < 1 else ()

    @property
    def sends(self) -> str:
        return f"its largest {100 * self.density:g} % of entries"

    def pack(self, vector: Tensor, sizes: Sequence[int], rng: torch.Generator) -> Tensors:
        return largest(vector, self.density)

    def unpack(self, payload: Tensors, sizes: Sequence[int]) -> Tensor:
        return scattered(payload, sum(sizes))

    def layout(self, sizes: Sequence[int]) -> Mapping[str, Extra]:
        return sparse_layout(sum(sizes), self.density)

    def fault(self, payload: Tensors, like: Tensors) -> str | None:
        return wrong_places(payload, sum(sizes_of(like)))


def largest(vector: Tensor, density: float) -> Tensors:
    """The entries of largest magnitude: `values` (k,) float32 and `indices` (k,) int32, ascending."""
    found = vector.abs().topk(count_of(len(vector), density), sorted=False).indices.sort().values
    return {"values": vector[found], "indices": found.int()}


def scattered(payload: Tensors, size: int) -> Tensor:
    """(size,) float32: the values at their indices, and zeros."""
    return torch.zeros(size).scatter(0, payload["indices"].long(), payload["values"])


def sparse_layout(size: int, density: float) -> Mapping[str, Extra]:
    """The tensors of `largest`."""
    count = count_of(size, density)
    return {"values": Extra((count,)), "indices": Extra((count,), torch.int32, least=0)}


def wrong_places(payload: Tensors, size: int) -> str | None:
    """Why the indices are not those of `largest`; None if they are."""
    places = payload["indices"]
    if len(places) and (bool((places[1:] <= places[:-1]).any()) or int(places[-1]) >= size):
        return f"the update's 'indices' are not ascending numbers below {size}"
    return None


def count_of(size: int, density: float) -> int:
    """Number of entries that are sent of `size`."""
    return min(size, max(1, int(density * size)))
