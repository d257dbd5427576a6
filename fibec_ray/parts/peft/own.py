"""PEFT kinds that the peft library lacks: what they save, and how a task's own head is trained beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fibec_ray.heads import task_type
from fibec_ray.parts.peft.base import Peft

KIND = "fibec_ray_peft"
"""The key of adapter_config.json under which the kind and its fields are. (peft knows its own by peft_type.)"""


class Own(Peft):
    """Saved as adapter_config.json and adapter_model.safetensors, by the names of the base's modules;
    `fibec_ray.parts.peft.load_adapter(base, folder)` loads it.
    """

    def config(self, head: Sequence[str] | None) -> dict[str, Any]:
        found = {KIND: self.model_dump(mode="json"), "task_type": task_type(head)}
        return found if head is None else {**found, "modules_to_save": list(head)}

    def saved_in(self, file: Path) -> Own:
        """The kind, when its tensors are loaded from this file."""
        return self


def train_head(module: Any, head: Sequence[str] | None) -> None:
    """Makes the classification head of the architecture trainable. head: paths of its modules."""
    for path in head or ():
        make_private(module.get_submodule(path))


def make_private(part: nn.Module | nn.Parameter) -> None:
    """Trainable, in memory of its own: the base's is shared by all processes of a node."""
    for p in [part] if isinstance(part, nn.Parameter) else part.parameters():
        p.data = p.data.clone()
        p.requires_grad_(True)
