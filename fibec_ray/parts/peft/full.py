"""No adapter: the whole model is trained."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator
from torch import nn

from fibec_ray.parts.part import Need
from fibec_ray.parts.peft.base import Peft
from fibec_ray.types import HEAD


class Full(Peft):
    """Full training: every weight moves and is sent; what PEFT kinds are measured against on a pretrained backbone.

    The one kind for networks that are trained from scratch, and theirs where `method.peft` is not set. A pretrained
    base must be float32, and each process has a copy of its own. Fisher information is not to be had of the embeddings
    of transformers.
    """

    kind: Literal["full"] = "full"
    trains_base: ClassVar[bool] = True

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Full:
        if self.target_modules is not None:
            raise ValueError("target_modules has no effect with peft: full, which trains everything; leave it out")
        return self

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def config(self, task_type: str | None) -> Any:
        """There is none."""

    def attach(self, module: nn.Module, task_type: str | None) -> Any:
        for param in module.parameters():
            param.data = param.data.clone()  # the stored weights are mapped into all processes of a node
        return _Whole(module.requires_grad_(True))

    def is_adapter(self, name: str) -> bool:
        return name.partition(".")[0] != HEAD


class _Whole(nn.Module):
    """Stands where a PeftModel does: the module lies under the same path, so that its tensors have the same prefix."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = module
