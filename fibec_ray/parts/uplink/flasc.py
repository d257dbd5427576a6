"""FLASC: sparse messages both ways, dense training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

from fibec_ray.parts.part import Need
from fibec_ray.parts.uplink.base import Uplink
from fibec_ray.parts.uplink.codec import sizes_of, tensors_of, vector_of
from fibec_ray.parts.uplink.topk import largest, scattered, sparse_layout, wrong_places
from fibec_ray.tensors import Tensors
from fibec_ray.types import Extra


class Flasc(Uplink):
    """FLASC (Kuo et al., arXiv 2406.05233): server and devices send only their largest entries.

    Down: the entries of largest magnitude of the server's tensors, others as zero. Devices train all entries. Up: the
    entries of largest magnitude of the change, without error feedback. The server keeps dense tensors, and the authors'
    code steps them with Adam. Both selections are over all tensors together, the head included. 8 bytes for each entry
    sent: value and place. The global model that is scored and saved is the one that devices receive, as in the authors'
    code. With densities of 1 and aggregator mean this is FedAvg.
    Ours: entries are chosen from the current tensors (the authors' code: from the round before), and updates are
    weighted by samples.
    """

    kind: Literal["flasc"] = "flasc"
    density_down: float = Field(0.25, gt=0, le=1, description="share of the server's entries that are sent")
    density_up: float = Field(0.25, gt=0, le=1, description="share of the change's entries that are sent")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("shared", "whole")

    @property
    def lacks(self) -> tuple[Need, ...]:
        up, down = self.density_up < 1, self.density_down < 1
        return (*(("exact", "dense") if up else ()), *(("received",) if down else ()))

    @property
    def sends(self) -> str:
        return f"its largest {100 * self.density_up:g} % of entries"

    def encode(self, delta: Tensors, memory: Tensors, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        return largest(vector_of(delta), self.density_up), {}

    def expected_payload(self, like: Tensors) -> Mapping[str, Extra]:
        return sparse_layout(sum(sizes_of(like)), self.density_up)

    def fault(self, payload: Tensors, like: Tensors) -> str | None:
        return wrong_places(payload, sum(sizes_of(like)))

    def decode(self, payload: Tensors, like: Tensors) -> Tensors:
        return tensors_of(scattered(payload, sum(sizes_of(like))), like)

    def encode_down(self, shared: Tensors) -> Tensors:
        return largest(vector_of(shared), self.density_down)

    def expected_down(self, like: Tensors) -> Mapping[str, Extra]:
        return sparse_layout(sum(sizes_of(like)), self.density_down)

    def decode_down(self, payload: Tensors, like: Tensors) -> Tensors:
        return self.decode(payload, like)
