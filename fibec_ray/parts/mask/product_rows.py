"""A mask on output rows of LoRA's product B A, fixed after a warm-up: FibecFed's mask in a co-author's code.

Shapes: r rank of a pair, A (r, in), B (out, r), product (out, in).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.low_rank import A, B, pairs
from fibec_ray.parts.mask.base import Mask, WarmUp
from fibec_ray.parts.mask.by_neuron import keep_top
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors, select, under_prefix, with_prefix


class ProductRows(Mask):
    """Trains the rows of LoRA's product that a warm-up moved the most, as in a co-author's code of FibecFed.

    In the setup phase each device trains all tensors for `warmup_epochs` epochs. A neuron is an output row o of B A. An
    epoch gives it the score F~_o = mean_i ((change of (B A)_oi) / lr)^2, and F = (1 - m) F + m F~. Then the values of
    the warm-up are discarded. The rows of the personal layers are ranked together, and the top `ratio` of rows of B
    train for the whole run. The other rows of B stay 0, so their neurons add nothing: this is the same as multiplying
    LoRA's output by the mask. A always trains.

    Ours: the warm-up starts at the initial model with a new optimiser for each epoch, uses all batches of the device
    with the run's `local` settings, and its values are discarded; rows are ranked across layers; a row that the
    warm-up did not move is never chosen. LoRA's scaling is left out of the score, since it is the same in all layers.
    """

    kind: Literal["product_rows"] = "product_rows"
    ratio: float = Field(
        0.95, gt=0, le=1, description="fraction of rows that train; the code removes .05, and tries .1 and .2"
    )
    momentum: float = Field(0.5, gt=0, le=1, description="m: weight of the latest epoch; the code tries .2, .5 and .8")
    warmup_epochs: int = Field(3, ge=1, description="epochs of the warm-up")
    needs_setup: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = ("lora", "personal")
    keeps: ClassVar[str] = "mask (device)"

    def warm_up(self, memory: Tensors, session: WarmUp, learning_rate: float) -> Tensors:
        scores: Tensors = {}
        before = products(session.read())
        for epoch in range(self.warmup_epochs):
            session.train(first_epoch=epoch, epochs=1)
            after = products(session.read())
            latest = {name: ((value - before[name]) / learning_rate).square().mean(1) for name, value in after.items()}
            scores = {name: torch.lerp(scores.get(name, value), value, self.momentum) for name, value in latest.items()}
            before = after
        return with_prefix("rows", scores)

    def refresh(self, memory: Tensors, scan: FisherScan, names: Collection[str], rng: torch.Generator) -> Tensors:
        if under_prefix("kept", memory):
            return memory
        kept = keep_top(select(under_prefix("rows", memory), names), self.ratio, "row")
        shapes = {name: scan.model.trainable[name].shape for name in names}
        return with_prefix("kept", {name: _entries(kept.get(name), shape) for name, shape in shapes.items()})


def products(values: Mapping[str, Tensor]) -> Tensors:
    """The products B A (out, in) of all pairs, under the names of their B."""
    return {pair + B: values[pair + B] @ values[pair + A] for pair in pairs(values)}


def _entries(rows: Tensor | None, shape: torch.Size) -> Tensor:
    """Expand rows (out,) to the entries of a B (out, r); all True for tensors without scores."""
    free = torch.ones(shape, dtype=torch.bool)
    return free if rows is None else free & rows.unsqueeze(1)
