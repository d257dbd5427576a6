"""What every PEFT kind is: small trainable tensors inside a frozen base. The contract of all PEFT kinds."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from fibec_ray.errors import ModelError
from fibec_ray.parts.part import Need, Part

_BLOCK = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")


class Peft(Part):
    """Attached by the peft library, whose names and layout are kept: the saved adapter loads with
    `PeftModel.from_pretrained`.

    A subclass says which configuration peft takes, and by what its tensors' names are known.
    """

    target_modules: tuple[str, ...] | None = Field(
        None, description="names of the Linears to adapt; null: peft's choice for the model type"
    )
    marks: ClassVar[tuple[str, ...]]
    """one of them is in the name of each tensor that the kind adds"""
    trains_base: ClassVar[bool] = False
    """True if nothing is frozen and nothing is added"""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("transformer",)

    @abstractmethod
    def config(self, task_type: str | None) -> Any:
        """peft's configuration. task_type: peft's, or None."""

    def attach(self, module: nn.Module, task_type: str | None) -> Any:
        """The PeftModel around `module`, which is changed in place.

        peft draws its initial values from torch's global generator: seed it around this call.
        """
        from peft import get_peft_model

        try:
            return get_peft_model(module, self.config(task_type))
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
        return any(mark in name for mark in self.marks)

    @property
    def targets(self) -> list[str] | None:
        return list(self.target_modules) if self.target_modules else None


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].rstrip(".")


def _linear_names(module: nn.Module) -> list[str]:
    names = (name.rsplit(".", 1)[-1] for name, child in module.named_modules() if isinstance(child, nn.Linear))
    return sorted(dict.fromkeys(names))
