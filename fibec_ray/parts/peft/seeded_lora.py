"""LoRA that moves along K random directions only, so that K numbers describe the whole model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from fibec_ray.directions import COEFFICIENTS, moved
from fibec_ray.parts.part import Need
from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.tensors import Tensors, drop


class SeededLora(Lora):
    """LoRA whose trained tensors, head included, are w = w_0 - sum_j a_j z_j (FedKSeed). Only the K numbers a_j travel.

    w_0 are the values at the start of the run. z_j is the standard normal vector drawn with seed j, so every process
    can rebuild w. Devices change a (solver fedkseed), and the server averages it. Each process rebuilds w once a round,
    with one draw for each entry of a that is not 0. The saved adapter is plain LoRA.
    """

    kind: Literal["seeded_lora"] = "seeded_lora"  # type: ignore[assignment]
    partners: ClassVar[Mapping[str, str]] = {"solver": "fedkseed", "sharing": "all"}
    num_seeds: int = Field(4096, ge=1, description="K: number of directions; 4096 in the paper")
    marks: ClassVar[tuple[str, ...]] = (".lora_", COEFFICIENTS)
    lacks: ClassVar[tuple[Need, ...]] = ("lora", "whole")
    sends: ClassVar[str] = "one number for each seed"

    @model_validator(mode="after")
    def _one_adapter_for_all(self) -> SeededLora:
        if self.use_dora or self.ranks is not None or self.take_turns or self.freeze_a:
            raise ValueError("use_dora, ranks, take_turns and freeze_a do not work with seeds; leave them out")
        return self

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        attached = super().attach(module, head)
        # A Linear that is never called: lanes know how to hold its values.
        attached.module.seeds = nn.Linear(self.num_seeds, 1, bias=False)
        nn.init.zeros_(attached.module.seeds.weight)
        return attached

    def moving(self, names: Collection[str], round_: int, rounds: int) -> frozenset[str]:
        return frozenset(name for name in names if name == COEFFICIENTS)

    def rebuilt(self, shared: Tensors, initial: Tensors) -> Tensors:
        start = {name: initial[name] for name in shared if name != COEFFICIENTS}
        return {**moved(start, shared[COEFFICIENTS]), COEFFICIENTS: shared[COEFFICIENTS]}

    def saved(self, values: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        """w, as plain LoRA."""
        start = drop(dict(values), [COEFFICIENTS])
        return moved(start, values[COEFFICIENTS]), dict(config)

    def reopened(self, values: Tensors, config: Mapping[str, Any], file: Path) -> tuple[Peft, Tensors]:
        """Plain LoRA."""
        return self.as_lora(), values
