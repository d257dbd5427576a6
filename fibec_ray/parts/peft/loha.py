"""LoHa: the product of two low-rank matrices, entry by entry."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from fibec_ray.parts.peft.library import InLinears


class Loha(InLinears):
    """LoHa (FedPara; Hyeon-Woo, Ye-Bin, Oh, ICLR 2022): W + (alpha / r) (B_1 A_1) * (B_2 A_2), rank up to r^2.

    Proposed for federated learning: more rank for the bytes. Fisher information is not to be had of it.
    """

    kind: Literal["loha"] = "loha"
    r: int = Field(4, ge=1, description="rank of each of the two products")
    alpha: float = Field(8, gt=0, description="numerator of the scaling")
    marks: ClassVar[tuple[str, ...]] = (".hada_",)

    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        from peft import LoHaConfig

        return LoHaConfig(r=self.r, alpha=self.alpha, target_modules=targets, task_type=task_type)
