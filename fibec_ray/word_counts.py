"""Counts how often each token occurs in texts, for curricula that order samples by rarity."""

from __future__ import annotations

import torch
from torch import Tensor

from fibec_ray.model_types import Batch, Shard

AT_ONCE = 256
"""samples read at a time"""


def tokens_of(batch: Batch) -> Tensor:
    """Return the token ids of a batch without padding, (tokens,) int64, sample by sample."""
    return batch.inputs["input_ids"][batch.inputs["attention_mask"].bool()]


def word_counts(shard: Shard) -> Tensor:
    """Count how often each token occurs in the shard's samples: (V,) int64, with V the largest token id plus 1."""
    groups = torch.arange(shard.num_samples).split(AT_ONCE)
    return torch.bincount(torch.cat([tokens_of(shard.batch(rows)) for rows in groups]))


def exchanged_bytes(num_words: int) -> tuple[int, int]:
    """Return the bytes (down, up) that a device exchanges to learn how often its words occur on all devices.

    num_words: different words of the device. It sends the id and the count of each (int32), and receives the total
    count of each (int32) and the number of all tokens (int64).
    """
    return 4 * num_words + 8, 8 * num_words
