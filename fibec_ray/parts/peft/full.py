"""Full training: no adapter, the whole model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from fibec_ray.errors import ModelError
from fibec_ray.model_types import HEAD
from fibec_ray.parts.part import Need, Setting
from fibec_ray.parts.peft.attached import Attached, plain
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.library import saved_name


class Full(Peft):
    """Full training: every weight is trained and sent. The reference for PEFT kinds on a pretrained backbone.

    It is the only kind for networks trained from scratch, and their default for `method.peft`. A pretrained base must
    be float32, and each process holds its own copy. Fisher information is not available for the embeddings of
    transformers.
    """

    kind: Literal["full"] = "full"
    trains_base: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = ()

    def unfit_for(self, setting: Setting) -> str | None:
        if setting.dtype == "bfloat16":
            return "full trains the base itself, in float32; set backbone.dtype=float32"
        return None

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        if module.dtype != torch.float32:
            raise ModelError("method.peft: full trains the base in its own dtype; set backbone.dtype: float32")
        for param in module.parameters():
            param.data = param.data.clone()  # all processes of a node share the stored weights
        module.requires_grad_(True)
        if (pooler := getattr(module, "pooler", None)) is not None:
            pooler.requires_grad_(False)  # BERT's bare encoder has a pooler that nothing uses
        config = plain(module.config.to_dict())
        del config["inference_mode"]  # applies only to adapters
        return Attached(_Whole(module), module, config, saved_name)

    def is_adapter(self, name: str) -> bool:
        return not name.startswith(f"{HEAD}.")


class _Whole(nn.Module):
    """Stands in for a PeftModel: the module has the same path, so its tensors have the same prefix."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = module
