"""HetLoRA: padded factors, weighted by how much devices have learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from fibec_ray.low_rank import A, B, pairs, product_norm, rank_axis
from fibec_ray.parts.aggregator.over_factors import OverFactors
from fibec_ray.tensors import Tensors, select, subtract, weighted_mean


class HetLora(OverFactors):
    """HetLoRA (Cho et al., EMNLP 2024): factors of lower rank are padded with zeros, and the padded ones averaged with
    weights |B_k A_k|_F / sum over devices, the norm over all adapted weights.

    So devices of a low rank, or that have learnt little, count for less. Its pruning is objective rank_pruning.
    Equal ranks, norms and n_k: FedAvg. Tensors other than LoRA's (a head) are FedAvg's.
    """

    kind: Literal["hetlora"] = "hetlora"
    partners: ClassVar[Mapping[str, str]] = {"peft": "lora"}

    def factors(self, received: Tensors, trained: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
        names = [name for name in received if rank_axis(name) is not None]
        norms = [_norm(values) for values in trained]
        if not any(norms):
            norms = [1.0] * len(norms)
        mean = weighted_mean((norm, select(values, names)) for norm, values in zip(norms, trained, strict=True))
        return subtract(mean, received)


def _norm(values: Tensors) -> float:
    """|B A|_F over all pairs."""
    return sum(product_norm(values[x + A], values[x + B]) ** 2 for x in pairs(values)) ** 0.5
