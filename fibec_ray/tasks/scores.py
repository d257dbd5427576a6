"""Scores of a model on some samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fibec_ray.types import Predictions


@dataclass(frozen=True)
class Scores:
    """One model's scores on one set of samples."""

    accuracy: float | None
    """None where no answer is simply right or wrong, as in a regression"""
    loss: float
    metric: float | None
    """the task's own metric; None where it is not defined, such as the R2 of constant values"""
    perplexity: float | None = None
    """e^(mean loss over tokens), for answers in text"""
    metrics: list[tuple[str, float]] | None = None
    """further figures by name; None for tasks that have none"""


class Figures(NamedTuple):
    """The task's own metric, and further figures of some predictions."""

    metric: float | None
    more: Mapping[str, float] = {}


def mean_loss(predictions: Predictions) -> float:
    """Mean over samples."""
    return float(predictions.losses.double().mean())


def perplexity(predictions: Predictions) -> float | None:
    """exp of the mean loss over all tokens; None unless answers are texts. Each text's loss is a mean over its
    tokens.
    """
    if predictions.num_tokens is None:
        return None
    mean = (predictions.losses.double() * predictions.num_tokens).sum() / predictions.num_tokens.sum()
    return float(mean.exp())


def share_right(predictions: Predictions) -> float:
    """Share of samples whose prediction equals the label."""
    return float((predictions.labels == predictions.predicted).double().mean())
