"""Embedded samples that are not text: images of digits (`digits`), and a function (`regression`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from fibec_ray.data import points
from fibec_ray.data.dealing import Split
from fibec_ray.data.dense import DenseSet
from fibec_ray.data.examples import Points
from fibec_ray.data.heterogeneity import Column, mean_r2, own_mean_r2, r2
from fibec_ray.data.sets import SampleSet
from fibec_ray.data.settings import DataConfig
from fibec_ray.encoder import Encoder, Reads
from fibec_ray.errors import DataError
from fibec_ray.tasks.base import Task, generated
from fibec_ray.tasks.classification import Classes
from fibec_ray.tasks.prediction import Prediction
from fibec_ray.tasks.scores import Figures
from fibec_ray.types import Predictions


class Numbers(Task):
    """Samples that are arrays of numbers of one shape."""

    reads: ClassVar[Reads] = "numbers"

    def encode(self, rows: Points, encoder: Encoder) -> SampleSet:
        return DenseSet.of(rows)

    def rows_to_predict(self, inputs: Any, shape: tuple[int, ...]) -> Points:
        """inputs: an array (N, *shape)."""
        sizes = ", ".join(map(str, shape))
        try:
            features = np.asarray(inputs, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"this model predicts from numbers of shape (N, {sizes}): {error}") from error
        if features.shape[1:] != tuple(shape):
            raise DataError(
                f"this model predicts from numbers of shape (N, {sizes}), and was given {features.shape}; "
                "give an array with one row per sample"
            )
        return Points(features, np.zeros(len(features), np.int64))


class Digits(Classes, Numbers):
    """1,797 images of handwritten digits, 8 x 8 pixels, from scikit-learn."""

    kind: Literal["digits"] = "digits"

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Points, Points]:
        return points.load_digits(seed)


class Values(Task):
    """Samples with a real value; the loss is half the squared error. Partitions by label deal by region."""

    metric: Literal["r2"] = Field("r2", description="R2, the share of the values' variance that is explained")

    likelihood: ClassVar[str] = "normal"

    @property
    def num_scores(self) -> int:
        return 1

    def accuracy(self, predictions: Predictions) -> float | None:
        return None

    def figures(self, predictions: Predictions) -> Figures:
        return Figures(r2(predictions.labels.numpy(), predictions.predicted.numpy()))

    def predictions(self, scores: Tensor) -> list[Prediction]:
        return [Prediction(value=value) for value in scores[:, 0].tolist()]

    def compared(self, train: Points) -> Mapping[str, Column | None]:
        return {**super().compared(train), "value": train.values}

    def anchors(self, train: Points, test: Points, split: Split) -> dict[str, float]:
        """R2 of the mean of all training values, and of each device's own."""
        assert train.values is not None and test.values is not None
        found = {"mean": mean_r2(train.values, test.values), "own_mean": own_mean_r2(train.values, test.values, split)}
        return {name: value for name, value in found.items() if value is not None}


class Regression(Values, Numbers):
    """A function on [-1, 1]^d, generated (`data.regression`)."""

    kind: Literal["regression"] = "regression"

    embedded: ClassVar[str | None] = "regression"

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Points, Points]:
        return generated(points.generate, seed, config.regression)

    def num_groups(self, train: Points) -> int | None:
        return train.num_groups
