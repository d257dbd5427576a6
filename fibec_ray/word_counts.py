"""How often each token occurs in a device's texts. A curriculum orders samples by it."""

from __future__ import annotations

import torch
from torch import Tensor

from fibec_ray.model_types import Batch, Shard

AT_ONCE = 256
"""samples that are read together"""


def tokens_of(batch: Batch) -> Tensor:
    """The token ids of a batch without padding, (tokens,) int64, in order."""
    return batch.inputs["input_ids"][batch.inputs["attention_mask"].bool()]


def word_counts(shard: Shard) -> Tensor:
    """How often each token occurs in the shard's samples, (V,) int64, with V the largest token id plus 1."""
    groups = torch.arange(shard.num_samples).split(AT_ONCE)
    return torch.bincount(torch.cat([tokens_of(shard.batch(rows)) for rows in groups]))


def exchanged_bytes(num_words: int) -> tuple[int, int]:
    """Bytes (down, up) with which a device with so many different words learns their counts on all devices.

    It sends the id and the count of each word. It receives the sum for each, and the number of all tokens (int64).
    """
    return 4 * num_words + 8, 8 * num_words
