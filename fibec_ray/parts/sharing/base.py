"""The neutral sharing rule: every trainable tensor is communicated. The contract of all sharing rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fibec_ray.parts.part import Part
from fibec_ray.types import LayerReport, LocalModel, Shard


@dataclass(frozen=True)
class Selection:
    """names: the shared tensors. scores: (L,) float32 averages that the choice was made by, if there were any."""

    names: frozenset[str]
    scores: Tensor | None = None


class Sharing(Part):
    """Which trainable tensors are shared; the others are personal and never leave their device.

    Device half: `score`, in the initialisation phase, if the part `opens`. Server half: `select`, once.
    """

    kind: str = "all"

    @property
    def keeps_personal(self) -> bool:
        """True if the rule can leave tensors on the devices."""
        return False

    def score(self, model: LocalModel, shard: Shard, rng: torch.Generator) -> Tensor | None:
        """(L,) float32: what this device thinks of each block."""
        return None

    def select(self, reports: Sequence[LayerReport], layers: Mapping[str, int | None], num_layers: int) -> Selection:
        """The choice, from all devices' reports. layers: block of each trainable tensor (None: head)."""
        return Selection(frozenset(layers))


def average_scores(reports: Sequence[LayerReport]) -> Tensor:
    """I^l = sum_k (n_k / n) I_k^l, (L,) float32; summed in float64 in the order given."""
    total = sum(report.num_samples for report in reports)
    weighted = [
        report.scores.double() * (report.num_samples / total) for report in reports if report.scores is not None
    ]
    return torch.stack(weighted).sum(0).float()
