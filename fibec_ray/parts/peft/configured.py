"""PEFT kinds that are no more than a configuration of the peft library's."""

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


class Vera(InLinears):
    """VeRA (Kopiczko, Blankevoort, Asano, ICLR 2024): W + diag(b) B diag(d) A with random A, B that layers share.

    Only b and d are trained and sent; A and B come from `seed` wherever the adapter is loaded. Fisher information is
    not to be had of it.
    """

    kind: Literal["vera"] = "vera"
    r: int = Field(64, ge=1, description="rank of the random matrices")
    seed: int = Field(0, ge=0, description="of the random matrices")
    marks: ClassVar[tuple[str, ...]] = (".vera_lambda_",)

    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        from peft import VeraConfig

        return VeraConfig(
            r=self.r,
            projection_prng_key=self.seed,
            save_projection=False,
            target_modules=targets,
            task_type=task_type,
        )
