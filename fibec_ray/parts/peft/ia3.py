"""(IA)^3: learnt scales in place of added matrices."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from fibec_ray.parts.peft.library import InLinears


class Ia3(InLinears):
    """(IA)^3 (Liu et al., NeurIPS 2022): y = l * (W x) on keys and values, y = W (l * x) in the feed-forward.

    l starts at 1, which is the base model. It wants a higher learning rate than LoRA: 1e-2 and more.
    """

    kind: Literal["ia3"] = "ia3"
    feedforward_modules: tuple[str, ...] | None = Field(
        None, description="those of target_modules whose input is scaled; null: peft's choice for the model type"
    )
    peft_chooses: ClassVar[bool] = True
    marks: ClassVar[tuple[str, ...]] = (".ia3_l",)

    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        from peft import IA3Config

        inputs = list(self.feedforward_modules) if self.feedforward_modules is not None else None
        return IA3Config(target_modules=targets, feedforward_modules=inputs, task_type=task_type)
