"""The neutral sharing rule: every trainable tensor is communicated. The contract of all sharing rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fibec_ray.errors import ConfigError
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.part import Need, Part, Passes
from fibec_ray.types import LayerReport, LayerScores, Layout


@dataclass(frozen=True)
class Selection:
    """names: the shared tensors. scores: (L,) float32 averages that the choice was made by, if there were any."""

    names: frozenset[str]
    scores: Tensor | None = None


def refuse_without_blocks(kind: str, layout: Layout) -> None:
    """Raises ConfigError where a rule that tells blocks apart finds no tensor in any (prompts before the first one)."""
    if all(layer is None for layer in layout.layers.values()):
        raise ConfigError(
            f"method.sharing: {kind} tells blocks apart, and no tensor of method.peft belongs to one; "
            "set sharing: all, or choose a peft kind inside the blocks, such as lora or prefix"
        )


class Sharing(Part):
    """Which trainable tensors are shared; the others are personal and never leave their device.

    Device half: `score`, in the initialisation phase, if the part `needs_setup`. Server half: `select`, once.
    """

    costs = {"score": ("passes", "example_scores")}

    kind: str = "all"

    @property
    def lacks(self) -> tuple[Need, ...]:
        """A rule that can leave tensors on the devices returns () instead."""
        return ("personal",)

    @property
    def sends(self) -> str:
        return "all that is trainable"

    def score(self, model: LocalModel, shard: Shard, rng: torch.Generator) -> LayerScores:
        """What this device has to say about the blocks."""
        return LayerScores()

    def passes(self, num_classes: int) -> Sequence[Passes]:
        """What `score` computes. num_classes: 1 in a regression, 0 where answers are texts."""
        return ()

    def example_scores(self, num_layers: int) -> LayerScores:
        """Scores such as `score` may return: a plan of a run takes them for those of every device."""
        return LayerScores()

    def select(self, reports: Sequence[LayerReport], layout: Layout, rng: torch.Generator) -> Selection:
        """The choice, from all devices' reports."""
        return Selection(frozenset(layout.layers))
