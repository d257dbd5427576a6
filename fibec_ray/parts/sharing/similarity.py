"""How differently a block sees a device's samples (FedPepTAO's layer score); pure but for the model.

Shapes: n samples, S tokens of the longest, H hidden size, L blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fibec_ray.curvature.fisher import by_length
from fibec_ray.model_types import LocalModel, Shard

CHUNK = 16
"""Samples in one forward pass."""

RIDGE = 1e-5


def spread(similarity: Tensor) -> Tensor:
    """sum_i log e_i + 1 / e_i over e = eigenvalues + 1e-5 of a matrix of cosine similarities (n, n), as in the code of
    FedPepTAO (Che et al., EMNLP 2023).

    Least, n, where all samples differ (e_i = 1); the more alike they are, the more eigenvalues are near 0, and the
    larger it is.
    """
    values = torch.linalg.eigvalsh(similarity.double()).clamp(min=0) + RIDGE
    return (values.log() + 1 / values).sum()


@torch.no_grad()
def layer_similarity(model: LocalModel, shard: Shard, rows: Tensor) -> Tensor:
    """(L,) float32 `spread` of the cosines between samples' states, flattened over tokens, zeros at padding.

    Evaluation mode. Holds all states of the samples: n L S H floats.
    """
    model.train(False)
    states: list[list[Tensor]] = [[] for _ in range(model.num_layers)]
    for part in by_length(shard, rows, CHUNK):
        batch = shard.batch(part)
        real = batch.attention_mask.unsqueeze(2)
        for layer, hidden in zip(states, model.forward(batch, hidden=True).hidden, strict=True):
            layer.append(hidden.float().cpu() * real.cpu())
    units = (normalize(_joined(layer).double(), dim=1) for layer in states)
    return torch.stack([spread(unit @ unit.T) for unit in units]).float()


def _joined(parts: list[Tensor]) -> Tensor:
    """(n, S H) of parts (c, S_c, H), whose samples come with length."""
    joined = parts[0].new_zeros(sum(map(len, parts)), parts[-1].shape[1], parts[0].shape[2])
    for part, rows in zip(parts, joined.split([len(part) for part in parts]), strict=True):
        rows[:, : part.shape[1]] = part
    return joined.flatten(1)
