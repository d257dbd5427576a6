"""No adapter: the whole model is trained."""

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
    """Full training: every weight moves and is sent; what PEFT kinds are measured against on a pretrained backbone.

    The one kind for networks that are trained from scratch, and theirs where `method.peft` is not set. A pretrained
    base must be float32, and each process has a copy of its own. Fisher information is not to be had of the embeddings
    of transformers.
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
            param.data = param.data.clone()  # the stored weights are mapped into all processes of a node
        module.requires_grad_(True)
        if (pooler := getattr(module, "pooler", None)) is not None:
            pooler.requires_grad_(False)  # of BERT's bare encoder; nothing looks at what it makes of the first token
        config = plain(module.config.to_dict())
        del config["inference_mode"]  # a word of adapters
        return Attached(_Whole(module), module, config, saved_name)

    def is_adapter(self, name: str) -> bool:
        return not name.startswith(f"{HEAD}.")


class _Whole(nn.Module):
    """Stands where a PeftModel does: the module lies under the same path, so that its tensors have the same prefix."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = module
