"""LoRA, the neutral PEFT kind, and DoRA."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from fibec_ray.parts.peft.library import InLinears


class Lora(InLinears):
    """LoRA (Hu et al., ICLR 2022): h = W x + s B A x, s = alpha / r (rslora: alpha / sqrt(r)); B starts at 0.

    use_dora (Liu et al., ICML 2024) learns the length of each column of W + s B A apart from its direction; Fisher
    information is not to be had of it.
    """

    kind: Literal["lora"] = "lora"
    r: int = Field(8, ge=1, description="rank of A (r x in) and B (out x r)")
    alpha: float = Field(16, gt=0, description="numerator of the scaling s")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of A, in training")
    use_rslora: bool = False
    use_dora: bool = False
    marks: ClassVar[tuple[str, ...]] = (".lora_",)

    def config(self, task_type: str | None) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            task_type=task_type,
        )
