"""LoRA, the neutral PEFT kind, with DoRA, ranks by device, and matrices trained in turn."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from fibec_ray.low_rank import A, B
from fibec_ray.parts.part import Need
from fibec_ray.parts.peft.library import InLinears
from fibec_ray.parts.peft.narrow import follow_input
from fibec_ray.parts.peft.ranks import Ranks, adapted_layers


class Lora(InLinears):
    """LoRA (Hu et al., ICLR 2022): h = W x + s B A x, s = alpha / r (rslora: alpha / sqrt(r)); B starts at 0.

    use_dora (Liu et al., ICML 2024) learns the length of each column of W + s B A apart from its direction; Fisher
    information is not available with it.

    ranks: devices have different ranks. The global adapter has rank r. A device of rank r_k receives, trains and sends
    the first r_k rows of A and columns of B. scale_by: device gives it s_k = alpha / r_k; both factors are then
    multiplied by sqrt(s / s_k) on the way down and divided on the way up, so that s_k B A is the same on both sides. If
    all ranks equal r, this is LoRA with one rank.

    take_turns (RoLoRA, Chen et al. 2024): devices train and send B in the first round, A in the second, and so on. The
    mean of the updates is then the update of the mean, as in FFA-LoRA, while A is trained too.

    freeze_a: devices train and send only B. The aggregator may change A, as in FedSVD. Otherwise A keeps its first
    values, as in FFA-LoRA. take_turns and freeze_a hold for shared layers; both matrices of personal layers are trained
    in every round.
    """

    kind: Literal["lora"] = "lora"
    side_by_side: ClassVar[bool] = True
    r: int = Field(8, ge=1, description="rank of A (r x in) and B (out x r)")
    alpha: float = Field(16, gt=0, description="numerator of the scaling s")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of A, in training")
    use_rslora: bool = Field(False, description="s = alpha / sqrt(r) instead of alpha / r")
    use_dora: bool = Field(False, description="DoRA: train column lengths apart from directions")
    ranks: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=1,
        description="ranks of the device classes; each device draws one by the run's seed; null: all r",
    )
    scale_by: Literal["global", "device"] = Field(
        "global", description="s on a device of rank r_k: global uses r, device uses r_k"
    )
    take_turns: bool = Field(False, description="train A and B in alternate rounds")
    freeze_a: bool = Field(False, description="train and send only B; only the server may change A")
    marks: ClassVar[tuple[str, ...]] = (".lora_",)

    @model_validator(mode="after")
    def _ranks_fit(self) -> Lora:
        if self.ranks is None and self.scale_by != "global":
            raise ValueError("scale_by has an effect only with ranks; leave it out, or set ranks")
        if self.ranks is not None and max(self.ranks) > self.r:
            raise ValueError(f"ranks has {max(self.ranks)}, above the global adapter's r {self.r}; raise r")
        if self.ranks is not None and self.use_dora:
            raise ValueError("use_dora does not work with ranks that differ by device; leave out one of the two")
        if self.take_turns and self.freeze_a:
            raise ValueError(
                "take_turns trains A in every second round, but freeze_a never does; leave out one of them"
            )
        return self

    @property
    def sends(self) -> str:
        words = ["as many ranks as the device has"] if self.differs_by_device else []
        words += ["A and B in turn"] if self.take_turns else ["B without A"] if self.freeze_a else []
        return ", ".join(words)

    def config(self, targets: list[str] | None, task_type: str | None) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            task_type=task_type,
        )

    @property
    def computes_in_base_dtype(self) -> bool:
        return self.kind == "lora" and not self.use_dora  # DoRA's lengths need float32; kinds built on it add to them

    def keep_dtype(self, module: nn.Module) -> None:
        for layer in adapted_layers(module):
            factors = (*layer.lora_A.values(), *layer.lora_B.values())
            if all(isinstance(factor, nn.Linear) for factor in factors):  # not those of a convolution
                layer.cast_input_dtype_enabled = False  # PEFT's cast of the states
                for factor in factors:
                    follow_input(factor)

    def as_lora(self, **changes: Any) -> Lora:
        """Plain LoRA with the settings that a kind built on it shares with it."""
        fields = {name: getattr(self, name) for name in Lora.model_fields if name != "kind"}
        return Lora.model_validate(fields | changes)

    @property
    def device_ranks(self) -> Ranks:
        return Ranks(self.ranks, self.scaling)

    def scaling(self, rank: int | None) -> float:
        """The factor s on a device of this rank; None: the global adapter's."""
        base = self.r if rank is None or self.scale_by == "global" else rank
        return self.alpha / (math.sqrt(base) if self.use_rslora else base)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*super().needs, *(("fresh",) if self.take_turns else ()))

    @property
    def lacks(self) -> tuple[Need, ...]:
        ranks: tuple[Need, ...] = ("one_rank",) if self.differs_by_device else ()
        return ("whole", *ranks) if ranks or self.take_turns or self.freeze_a else ()

    def moving(self, names: Collection[str], round_: int, rounds: int) -> frozenset[str]:
        resting = (A if round_ % 2 == 0 else B) if self.take_turns else A if self.freeze_a else None
        return frozenset(name for name in names if resting is None or not name.endswith(resting))
