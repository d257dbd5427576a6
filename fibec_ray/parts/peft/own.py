"""Base class of PEFT kinds that the peft library lacks: how they are saved, and how a head is trained with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fibec_ray.heads import task_type
from fibec_ray.parts.peft.base import Peft

KIND = "fibec_ray_peft"
"""The key of the kind and its fields in adapter_config.json. (peft identifies its own kinds by peft_type.)"""


class Own(Peft):
    """Base of our own PEFT kinds; `fibec_ray.parts.peft.load_adapter(base, folder)` loads them.

    Saved as adapter_config.json and adapter_model.safetensors, by the names of the base's modules.
    """

    def config(self, head: Sequence[str] | None) -> dict[str, Any]:
        """The content of adapter_config.json. head: paths of a classification head's modules; None: no head."""
        found = {KIND: self.model_dump(mode="json"), "task_type": task_type(head)}
        return found if head is None else {**found, "modules_to_save": list(head)}

    def saved_in(self, file: Path) -> Own:
        """The kind, for loading its tensors from this file."""
        return self


def train_head(module: Any, head: Sequence[str] | None) -> None:
    """Make the architecture's classification head trainable. head: paths of its modules."""
    for path in head or ():
        make_private(module.get_submodule(path))


def make_private(part: nn.Module | nn.Parameter) -> None:
    """Make tensors trainable, in private memory: all processes of a node share the base's."""
    for p in [part] if isinstance(part, nn.Parameter) else part.parameters():
        p.data = p.data.clone()
        p.requires_grad_(True)
