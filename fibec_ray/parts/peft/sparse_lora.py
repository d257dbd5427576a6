"""SLoRA: trains a sparse change of the weights first, then starts LoRA from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray import seeds
from fibec_ray.low_rank import A, B, best_factors, pairs
from fibec_ray.parts.part import Need
from fibec_ray.parts.peft.attached import Attached
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.peft.ranks import adapted_layers
from fibec_ray.tensors import Tensors, drop

SPARSE = ".sparse"


class SparseLora(Lora):
    """SLoRA (Babakniya et al. 2023): stage 1 trains few entries D of the weights; LoRA of rank r starts from s B A ~ D.

    The entries are the same on all devices. Stage 1 takes sparse_fraction of the rounds, and its devices send only D's
    entries. At its end B = U sqrt(S / s) and A = sqrt(S / s) V^T from D = U S V^T, and D is reset to 0. The base does
    not change, and the part of D beyond rank r is lost. density: about 1 % in the paper. mask_seed draws the entries,
    so their positions are not sent. Fisher information of D is not available.
    """

    kind: Literal["sparse_lora"] = "sparse_lora"  # type: ignore[assignment]
    partners: ClassVar[Mapping[str, str]] = {"sharing": "all"}
    side_by_side: ClassVar[bool] = False
    can_switch_off: ClassVar[bool] = False
    density: float = Field(0.01, gt=0, le=1, description="share of each adapted weight's entries that stage 1 trains")
    sparse_fraction: float = Field(0.2, gt=0, lt=1, description="share of the rounds in stage 1 (at least one round)")
    mask_seed: int = Field(0, ge=0, description="seed of the choice of entries")
    marks: ClassVar[tuple[str, ...]] = (".lora_", SPARSE)

    @model_validator(mode="after")
    def _one_adapter_for_all(self) -> SparseLora:
        if self.use_dora or self.ranks is not None or self.take_turns or self.freeze_a:
            raise ValueError("use_dora, ranks, take_turns and freeze_a do not work with two stages; leave them out")
        return self

    sends: ClassVar[str] = "first few entries of the weights, then LoRA"

    def attach(self, module: Any, head: Sequence[str] | None) -> Attached:
        attached = super().attach(module, head)
        layers = adapted_layers(attached.module)
        for name, layer in attached.module.named_modules():
            if layer in layers:
                self._add_sparse(name, layer)
        return attached

    def _add_sparse(self, name: str, layer: Any) -> None:
        """Add the sparse change of one weight to a layer."""
        shape = layer.lora_B["default"].out_features, layer.lora_A["default"].in_features
        chosen = self._chosen(name, *shape)
        layer.sparse = nn.Parameter(torch.zeros(len(chosen)))
        layer.register_buffer("sparse_at", chosen, persistent=False)

        def add(layer: Any, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            weight = _dense(layer.sparse, layer.sparse_at, shape)
            return y + F.linear(args[0].to(weight), weight).to(y)

        layer.register_forward_hook(add)

    def _chosen(self, name: str, out: int, inside: int) -> Tensor:
        """Flat positions within the (out, in) weight, ascending."""
        count = max(1, round(self.density * out * inside))
        rng = seeds.generator(self.mask_seed, "sparse", name)
        return torch.randperm(out * inside, generator=rng)[:count].sort().values

    def saved(self, values: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        """The LoRA to save; in stage 1, the LoRA that would start from the current D."""
        now = dict(values) | self._handed_over(values)
        return drop(now, [name for name in now if name.endswith(SPARSE)]), dict(config)

    def reopened(self, values: Tensors, config: Mapping[str, Any], file: Path) -> tuple[Peft, Tensors]:
        """Plain LoRA: what stage 1 learnt is in it."""
        return self.as_lora(), values

    needs: ClassVar[tuple[Need, ...]] = ("transformer", "fresh")
    lacks: ClassVar[tuple[Need, ...]] = ("whole",)

    def _stage_rounds(self, rounds: int) -> int:
        """Number of rounds in stage 1."""
        return max(1, round(self.sparse_fraction * rounds))

    def moving(self, names: Collection[str], round_: int, rounds: int) -> frozenset[str]:
        resting = ".lora_" if round_ < self._stage_rounds(rounds) else SPARSE
        return frozenset(name for name in names if resting not in name)

    def after_round(self, shared: Tensors, control: Tensors, round_: int, rounds: int) -> Tensors:
        return self._handed_over(shared) if round_ + 1 == self._stage_rounds(rounds) else {}

    def _handed_over(self, shared: Mapping[str, Tensor]) -> Tensors:
        """LoRA's best start from D, and D = 0."""
        new: Tensors = {}
        for x in pairs(shared):
            a, b, values = shared[x + A], shared[x + B], shared[x + SPARSE]
            if not values.any():  # nothing was learnt; factors of 0 would never learn
                continue
            weight = _dense(values, self._chosen(x, len(b), a.shape[1]), (len(b), a.shape[1]))
            left, right, _ = best_factors([torch.eye(len(b))], [weight / self.scaling(None)], self.r)
            new |= {x + A: right.to(a), x + B: left.to(b), x + SPARSE: torch.zeros_like(values)}
        return new


def _dense(values: Tensor, positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """(out, in), zero except at the positions."""
    return values.new_zeros(shape[0] * shape[1]).index_copy(0, positions, values).view(shape)
