"""Joins predictions, and splits the test set into evaluation batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fibec_ray.model_types import Shard
from fibec_ray.types import Predictions


def pooled(personal: dict[int, Predictions], devices: Iterable[int]) -> Predictions:
    """Join the predictions of some devices on their own shards, in device order."""
    return Predictions.join([personal[device] for device in sorted(devices)])


def evaluation_chunks(test: Shard, batch_size: int) -> list[Tensor]:
    """Rows of the test set in batches of similar length. Independent of the fleet, so sums agree bit for bit."""
    return list(torch.argsort(test.lengths, stable=True).split(batch_size))


def in_row_order(chunks: list[Tensor], parts: list[Predictions]) -> Predictions:
    """Join predictions of chunks, in the order of the test set's rows."""
    joined, rows = Predictions.join(parts), torch.cat(chunks)
    order = torch.argsort(rows)
    return at_rows(joined, order)


def at_rows(predictions: Predictions, rows: Tensor) -> Predictions:
    """The predictions at these rows."""
    num_tokens = None if predictions.num_tokens is None else predictions.num_tokens[rows]
    return Predictions(predictions.labels[rows], predictions.predicted[rows], predictions.losses[rows], num_tokens)
