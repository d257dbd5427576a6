"""The neutral PEFT kind: LoRA. The contract of all PEFT kinds."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field
from torch import nn

from fibec_ray.errors import ModelError
from fibec_ray.parts.part import Part

_BLOCK = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")


class Peft(Part):
    """LoRA (Hu et al., ICLR 2022): h = W x + s B A x, s = alpha / r (rslora: alpha / sqrt(r)); B starts at 0.

    Attached by the peft library, whose names and layout are kept: the saved adapter loads with
    `PeftModel.from_pretrained`.
    """

    kind: str = "lora"
    r: int = Field(8, ge=1, description="rank of A (r x in) and B (out x r)")
    alpha: float = Field(16, gt=0, description="numerator of the scaling s")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of A, in training")
    target_modules: tuple[str, ...] | None = Field(
        None, description="names of the Linears to adapt; null: peft's choice for the model type (query and value)"
    )
    use_rslora: bool = False

    def attach(self, module: nn.Module, task_type: str | None) -> Any:
        """The PeftModel around `module`, which is changed in place. task_type: peft's, or None.

        peft draws its initial values from torch's global generator: seed it around this call.
        """
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(self.target_modules) if self.target_modules else None,
            use_rslora=self.use_rslora,
            task_type=task_type,
        )
        try:
            return get_peft_model(module, config)
        except ValueError as error:
            raise ModelError(
                f"method.peft.target_modules: {_first_sentence(error)}; name Linears of this backbone, such as "
                f"{', '.join(_linear_names(module)[:6])}"
            ) from error

    def layer_of(self, name: str) -> int | None:
        """The transformer block in a tensor's name; None outside blocks (head, prompts), which is always shared."""
        found = _BLOCK.search(name)
        return int(found.group(1)) if found else None

    def is_adapter(self, name: str) -> bool:
        """True for tensors that the PEFT kind added, False for a task head."""
        return ".lora_" in name


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].rstrip(".")


def _linear_names(module: nn.Module) -> list[str]:
    names = (name.rsplit(".", 1)[-1] for name, child in module.named_modules() if isinstance(child, nn.Linear))
    return sorted(dict.fromkeys(names))
