"""PEFT kinds that the peft library attaches; the base of those it puts beside the base's Linears."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, get_args

from pydantic import Field, field_validator

from fibec_ray.heads import task_type, unnamed
from fibec_ray.parts.peft.attached import Attached, plain
from fibec_ray.parts.peft.base import Peft, is_transposed
from fibec_ray.parts.peft.targets import Word, linears_of_blocks, query_and_value, refusal, resolve


class InLinears(Peft):
    """Attached by the peft library, whose names and layout are kept: the saved adapter loads with
    `PeftModel.from_pretrained`. A subclass says which configuration peft takes.
    """

    target_modules: Word | tuple[str, ...] | None = Field(
        None,
        description="the Linears to adapt: their names, attention (all of its projections) or all-linear (all of the "
        "blocks'); null: query and value (targets.py), or peft's choice for the kind and the model type",
    )
    peft_chooses: ClassVar[bool] = False
    """True if peft's choice of Linears is the kind's own, not LoRA's"""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _a_word_or_a_list(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in get_args(Word):
            raise ValueError(f"expected {' or '.join(get_args(Word))}, or a list of names such as [{value}]")
        return value

    @abstractmethod
    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        """peft's configuration. targets: ends of modules' names, or None: peft's choice; task_type: peft's, or None."""

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        from peft import get_peft_model

        targets, there = self._targets(module), linears_of_blocks(module)
        try:
            config = self.config(targets, task_type(head))
            config.modules_to_save = unnamed(head)
            if hasattr(config, "fan_in_fan_out"):  # peft would find out, and say so
                config.fan_in_fan_out = any(is_transposed(child) for child in module.modules())
            whole: Any = get_peft_model(module, config)
        except (TypeError, ValueError) as error:
            sentence = str(error).split(". ")[0].rstrip(".")
            what = sentence if targets else f"peft chooses none for a {module.config.model_type}"
            raise refusal(what, module, there=there) from error
        return Attached(whole, whole.get_base_model(), plain(whole.peft_config["default"].to_dict()), saved_name)

    def _targets(self, module: Any) -> list[str] | None:
        if self.target_modules is not None:
            return resolve(self.target_modules, module)
        return None if self.peft_chooses else query_and_value(module)


def saved_name(name: str) -> str:
    """peft's name in memory -> its name in a saved adapter (the adapter is called "default")."""
    short = name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")
    return short.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")  # DoRA's, saved as it once was
