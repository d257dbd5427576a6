"""LoKr: a Kronecker product in place of a low-rank one."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from fibec_ray.parts.peft.library import InLinears


class Lokr(InLinears):
    """LoKr (Yeh et al., ICLR 2024): W + (alpha / r) C (x) (B A), (x) the Kronecker product.

    Fisher information is not to be had of it.
    """

    kind: Literal["lokr"] = "lokr"
    r: int = Field(8, ge=1, description="rank of the second factor")
    alpha: float = Field(16, gt=0, description="numerator of the scaling")
    marks: ClassVar[tuple[str, ...]] = (".lokr_",)

    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        from peft import LoKrConfig

        return LoKrConfig(r=self.r, alpha=self.alpha, target_modules=targets, task_type=task_type)
