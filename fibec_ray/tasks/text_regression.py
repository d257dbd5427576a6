"""Texts, or pairs of texts, with a score: from tables (`text_regression`), or generated (`similar_texts`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.data import similar
from fibec_ray.data.columns import numbers_of, texts_of
from fibec_ray.data.dealing import Split
from fibec_ray.data.examples import Examples, Origin
from fibec_ray.data.heterogeneity import Column
from fibec_ray.data.own import OwnData, examine
from fibec_ray.data.own_answers import OwnScores
from fibec_ray.data.sets import SampleSet
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.source import Table
from fibec_ray.encoder import Encoder
from fibec_ray.tasks.base import generated
from fibec_ray.tasks.prediction import Prediction
from fibec_ray.tasks.scores import Figures
from fibec_ray.tasks.tables import LabelledTexts
from fibec_ray.tasks.texts import ScoredTexts
from fibec_ray.types import Predictions

GROUPS = 5
"""equal parts of the training scores, by which partitions deal rows"""


class RatedTexts(ScoredTexts):
    """Texts with a real score. The loss is half the squared error, after the range of scores is mapped to [-1, 1].

    Partitions by label deal by fifths of the training scores.
    """

    metric: Literal["pearson"] = Field("pearson", description="Pearson correlation of predicted and true scores")
    score_range: tuple[float, float] = Field(
        (-1.0, 1.0), description="lowest and highest score; they are mapped to -1 and 1 for training"
    )

    likelihood: ClassVar[str] = "normal"
    per_text: ClassVar[str] = "one score for each text"

    @property
    def num_scores(self) -> int:
        return 1

    def num_groups(self, train: Examples) -> int | None:
        return GROUPS

    def encode(self, rows: Examples, encoder: Encoder) -> SampleSet:
        scaled = (2 * (rows.answers - self._middle) / self._width).astype(np.float32)
        return super().encode(replace(rows, targets=scaled), encoder)

    def rows_to_predict(self, inputs: Any, shape: tuple[int, ...]) -> Examples:
        rows = super().rows_to_predict(inputs, shape)
        return replace(rows, targets=np.full(len(rows), self._middle, np.float32))

    def predictions(self, scores: Tensor) -> list[Prediction]:
        return [Prediction(value=value) for value in (scores[:, 0] * self._width / 2 + self._middle).tolist()]

    @property
    def code_for_scores(self) -> str:
        return f"print((logits[:, 0] * {self._width / 2:g} + {self._middle:g}).tolist())"

    def accuracy(self, predictions: Predictions) -> float | None:
        return None

    def figures(self, predictions: Predictions) -> Figures:
        """Pearson's and Spearman's correlations (None and left out where either side is constant), and the RMSE."""
        from scipy.stats import pearsonr, spearmanr  # heavy, and device actors never score

        true, found = predictions.labels.double().numpy(), predictions.predicted.double().numpy()
        rmse = float(np.sqrt(np.square(true - found).mean())) * self._width / 2
        if len(true) < 2 or np.ptp(true) == 0 or np.ptp(found) == 0:
            return Figures(None, {"rmse": rmse})
        return Figures(float(pearsonr(true, found)[0]), {"spearman": float(spearmanr(true, found)[0]), "rmse": rmse})

    def anchors(self, train: Examples, test: Examples, split: Split) -> dict[str, float]:
        """None: the mean has no correlation with anything."""
        return {}

    def compared(self, train: Examples) -> Mapping[str, Column | None]:
        return {"label": train.labels, "value": train.answers}

    @property
    def _middle(self) -> float:
        return sum(self.score_range) / 2

    @property
    def _width(self) -> float:
        return self.score_range[1] - self.score_range[0]

    @model_validator(mode="after")
    def _range_is_valid(self) -> Self:
        low, high = self.score_range
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ValueError(f"score_range is [{low:g}, {high:g}]; give the lowest score, then the highest")
        return self


class TextRegression(RatedTexts, LabelledTexts):
    """Texts with scores from tables."""

    kind: Literal["text_regression"] = "text_regression"

    found_in_files: ClassVar[bool] = True

    @classmethod
    def examined(
        cls, config: DataConfig, user_column: str | None, label_names: Sequence[str]
    ) -> tuple[OwnData, dict[str, Any]]:
        found = examine(config, user_column, answers=OwnScores(config.drop_missing))
        return found, {"text_columns": list(found.columns), "label_column": found.label_column}

    def rows_of(self, tables: Sequence[Table], config: DataConfig) -> list[Examples]:
        parts = []
        for table in tables:
            content, rows = self.complete(table, config)
            texts = [texts_of(content[column], f"{table.where}, column '{column}'") for column in self.text_columns]
            where = f"{table.where}, column '{self.label_column}'"
            scores = numbers_of(content[self.label_column], where, self.score_range, rows)
            origin = Origin.of(table.where, table.content.num_rows, rows)
            second = texts[1] if len(texts) == 2 else None
            parts.append(Examples(texts[0], second, np.zeros(len(scores), np.int64), origin=origin, targets=scores))
        return parts

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Examples, Examples]:
        train, test = super().load(config, seed, user_column)
        cuts = np.quantile(train.answers, np.arange(1, GROUPS) / GROUPS)
        return _grouped(train, cuts), _grouped(test, cuts)


class SimilarTexts(RatedTexts):
    """The embedded pairs of messages with a similarity from 0 to 5 (`data.similar`)."""

    kind: Literal["similar_texts"] = "similar_texts"
    text_columns: tuple[str, ...] = Field(("first", "second"), description="names of the two texts in tables")
    score_range: tuple[float, float] = Field(
        (0.0, similar.HIGHEST), description="lowest and highest score; they are mapped to -1 and 1 for training"
    )

    uses: ClassVar[tuple[str, ...]] = ("max_length",)
    embedded: ClassVar[str | None] = "similar"

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Examples, Examples]:
        return generated(similar.generate, seed, config.similar)


def _grouped(rows: Examples, cuts: NDArray[np.float64]) -> Examples:
    return replace(rows, labels=np.searchsorted(cuts, rows.answers, side="right").astype(np.int64))
