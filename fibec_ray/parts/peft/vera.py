"""VeRA: fixed random matrices, learnt scales between them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from fibec_ray.parts.peft.library import InLinears


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
