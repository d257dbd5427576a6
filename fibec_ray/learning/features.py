"""A sample's features: the mean over its real tokens of what a head sees.

Shapes: B samples of a batch, n of a shard, S tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fibec_ray.curvature.fisher import by_length
from fibec_ray.model_types import Batch, LocalModel, Outputs, Shard
from fibec_ray.tensors import Tensors


def features(out: Outputs, batch: Batch) -> Tensor:
    """(B, H) float32, in the graph. out: of the batch, with hidden states."""
    last = out.hidden[-1] if out.last is None else out.last
    real = batch.attention_mask.to(last.device).unsqueeze(2)
    return (last.float() * real).sum(1) / real.sum(1)


@torch.no_grad()
def features_under(values: Tensors, model: LocalModel, shard: Shard, batches: Sequence[Tensor]) -> Tensor:
    """(n, H) of the batches' samples, in evaluation mode, with other trainable values; NaN elsewhere.

    The model has its own values again afterwards.
    """
    before = model.read()
    model.load(values)
    model.train(False)
    parts = []
    groups = by_length(shard, torch.cat(list(batches)), max(map(len, batches)))
    for rows in groups:
        batch = shard.batch(rows)
        parts.append(features(model.forward(batch, hidden=True), batch))
    model.load(before)
    found = parts[0].new_full((shard.num_samples, parts[0].shape[1]), float("nan"))
    found[torch.cat(groups).to(found.device)] = torch.cat(parts)
    return found
