"""Scores from predictions, and the split of the test set into evaluation batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fibec_ray.data.heterogeneity import r2
from fibec_ray.model_types import Shard
from fibec_ray.types import Predictions


@dataclass(frozen=True)
class Scores:
    """One model's scores on one set of samples."""

    accuracy: float | None
    """None for a regression"""
    loss: float
    metric: float | None
    """the task's own metric; None for the R2 of constant values"""
    perplexity: float | None = None
    """e^(mean loss over tokens), for text answers"""


def score(metric: str, predictions: Predictions) -> Scores | None:
    """Score pooled predictions together (never as a mean over devices); None if there are none.

    metric: accuracy | mcc (Matthews correlation, CoLA) | accuracy_f1 (mean of accuracy and F1 of class 1, MRPC) | r2
    (regression). For text answers accuracy is the share of exact matches.
    """
    if not len(predictions.labels):
        return None
    labels, predicted = predictions.labels.numpy(), predictions.predicted.numpy()
    if metric == "r2":
        return Scores(None, float(predictions.losses.double().mean()), r2(labels, predicted))
    from sklearn.metrics import f1_score, matthews_corrcoef  # heavy, and device actors never score

    accuracy = float((labels == predicted).mean())
    own = accuracy
    if metric == "mcc":
        own = float(matthews_corrcoef(labels, predicted))
    elif metric == "accuracy_f1":
        own = (accuracy + float(f1_score(labels, predicted, zero_division=0))) / 2
    return Scores(accuracy, float(predictions.losses.double().mean()), own, perplexity(predictions))


def perplexity(predictions: Predictions) -> float | None:
    """exp of the mean loss over all tokens; None unless answers are texts. Each text's loss is a mean over its
    tokens.
    """
    if predictions.num_tokens is None:
        return None
    mean = (predictions.losses.double() * predictions.num_tokens).sum() / predictions.num_tokens.sum()
    return float(mean.exp())


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
