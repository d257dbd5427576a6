"""PEFT kinds that the peft library attaches; the base of those it puts beside the base's Linears."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pydantic import Field

from fibec_ray.errors import ModelError
from fibec_ray.parts.peft.attached import Attached, plain
from fibec_ray.parts.peft.base import Peft, linear_names


class InLinears(Peft):
    """Attached by the peft library, whose names and layout are kept: the saved adapter loads with
    `PeftModel.from_pretrained`. A subclass says which configuration peft takes.
    """

    target_modules: tuple[str, ...] | None = Field(
        None, description="names of the Linears to adapt; null: peft's choice for the model type"
    )

    @abstractmethod
    def config(self, task_type: str | None) -> Any:
        """peft's configuration. task_type: peft's, or None."""

    def attach(self, module: Any, task_type: str | None) -> Attached:
        from peft import get_peft_model

        try:
            whole: Any = get_peft_model(module, self.config(task_type))
        except ValueError as error:
            raise ModelError(
                f"method.peft.target_modules: {_first_sentence(error)}; name Linears of this backbone, such as "
                f"{', '.join(linear_names(module)[:6])}"
            ) from error
        return Attached(whole, whole.get_base_model(), plain(whole.peft_config["default"].to_dict()), saved_name)

    @property
    def targets(self) -> list[str] | None:
        return list(self.target_modules) if self.target_modules else None


def saved_name(name: str) -> str:
    """peft's name in memory -> its name in a saved adapter (the adapter is called "default")."""
    short = name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")
    return short.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")  # DoRA's, saved as it once was


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].rstrip(".")
