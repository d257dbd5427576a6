"""The base class of all sharing rules; used as it is, it shares every trainable tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.errors import ConfigError
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.part import Need, Part, Passes
from fibec_ray.types import LayerReport, LayerScores, Layout


@dataclass(frozen=True)
class Selection:
    """The tensors that are shared.

    names: the shared tensors. scores: (L,) float32 average scores used for the choice, if any.
    """

    names: frozenset[str]
    scores: Tensor | None = None


def refuse_without_blocks(kind: str, layout: Layout) -> None:
    """Raise ConfigError if a rule that chooses among blocks finds no tensor in any block (such as prompts before
    block 0).
    """
    if all(layer is None for layer in layout.layers.values()):
        raise ConfigError(
            f"method.sharing: {kind} chooses among blocks, but no tensor of method.peft is in a block; "
            "set sharing: all, or choose a peft kind inside the blocks, such as lora or prefix"
        )


class Sharing(Part):
    """Choose which trainable tensors are shared; the others are personal and never leave their device.

    Device half: `score`, in the setup phase, if the part `needs_setup`. Server half: `select`, once.
    """

    costs = {"score": ("passes", "example_scores")}

    kind: str = "all"

    @property
    def lacks(self) -> tuple[Need, ...]:
        """ "personal": everything is shared. Return () in a rule that can leave tensors on the devices."""
        return ("personal",)

    @property
    def sends(self) -> str:
        return "all that is trainable"

    def score(self, model: LocalModel, shard: Shard, rng: torch.Generator) -> LayerScores:
        """This device's scores of the transformer blocks."""
        return LayerScores()

    def passes(self, answers: Answers) -> Sequence[Passes]:
        """The passes that `score` makes. answers: what a model gives for a sample."""
        return ()

    def example_scores(self, num_layers: int) -> LayerScores:
        """Made-up scores in the form that `score` returns; a run plan uses them for every device."""
        return LayerScores()

    def select(self, reports: Sequence[LayerReport], layout: Layout, rng: torch.Generator) -> Selection:
        """Choose the shared tensors from all devices' reports."""
        return Selection(frozenset(layout.layers))
