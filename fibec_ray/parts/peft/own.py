"""PEFT kinds that the peft library lacks: what they save, and how a task's own head is trained beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fibec_ray.errors import ModelError
from fibec_ray.model_types import HEAD
from fibec_ray.parts.peft.base import Peft

KIND = "fibec_ray_peft"
"""The key of adapter_config.json under which the kind and its fields are. (peft knows its own by peft_type.)"""


class Own(Peft):
    """Saved as adapter_config.json and adapter_model.safetensors, by the names of the base's modules;
    `fibec_ray.parts.peft.load_adapter(base, folder)` loads it.
    """

    def config(self, task_type: str | None) -> dict[str, Any]:
        return {KIND: self.model_dump(mode="json"), "task_type": task_type}

    def saved_in(self, file: Path) -> Own:
        """The kind, when its tensors are loaded from this file."""
        return self


def train_head(module: Any, task_type: str | None) -> None:
    """Makes the classification head of the architecture trainable, as peft does: modules called classifier or score."""
    if task_type != "SEQ_CLS":
        return
    for name, child in module.named_children():
        if is_head(name):
            make_private(child)


def is_head(name: str) -> bool:
    """True for the tensors of a task's head, ours or the architecture's."""
    first = name.split(".", 1)[0]
    return first == HEAD or first.endswith(("classifier", "score"))


def make_private(part: nn.Module | nn.Parameter) -> None:
    """Trainable, in memory of its own: the base's is shared by all processes of a node."""
    for p in [part] if isinstance(part, nn.Parameter) else part.parameters():
        p.data = p.data.clone()
        p.requires_grad_(True)


def blocks_of(module: Any) -> nn.ModuleList:
    """The list of transformer blocks. Raises ModelError if there is no such thing."""
    count = getattr(module.config, "num_hidden_layers", None)
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return child
    raise ModelError(f"method.peft: {type(module).__name__} keeps its {count} blocks in no list; choose lora")
