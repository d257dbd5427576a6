"""Texts with any number of labels: from tables (`multi_label`), or generated (`mentions`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.data import mentions
from fibec_ray.data.columns import class_names, texts_of
from fibec_ray.data.dealing import Split
from fibec_ray.data.examples import Examples, Origin
from fibec_ray.data.flags import flags_of
from fibec_ray.data.heterogeneity import Column, majorities
from fibec_ray.data.own import OwnData, examine
from fibec_ray.data.own_answers import OwnFlags
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.source import Table
from fibec_ray.tasks.base import generated, refuse_twice
from fibec_ray.tasks.baselines import accuracies, in_own_metric
from fibec_ray.tasks.prediction import Prediction
from fibec_ray.tasks.scores import Figures
from fibec_ray.tasks.tables import LabelledTexts
from fibec_ray.tasks.texts import ScoredTexts
from fibec_ray.types import Predictions


class Flagged(ScoredTexts):
    """Texts with a yes or no for each of several labels. The loss is the sum of their cross-entropies.

    accuracy is the share of texts with exactly the right labels. Partitions by label deal by the rarest label that a
    text has; texts without labels are a group of their own.
    """

    label_names: tuple[str, ...] = Field((), description="names of the labels in the order of their ids")
    metric: Literal["f1_micro"] = Field("f1_micro", description="F1 over all labels of all texts together")

    likelihood: ClassVar[str] = "bernoulli"
    per_text: ClassVar[str] = "a score for each label"

    @property
    def num_scores(self) -> int:
        return len(self.label_names)

    @property
    def score_names(self) -> tuple[str, ...]:
        return self.label_names

    def num_groups(self, train: Examples) -> int | None:
        return self.num_scores + 1

    def rows_to_predict(self, inputs: Any, shape: tuple[int, ...]) -> Examples:
        rows = super().rows_to_predict(inputs, shape)
        return replace(rows, targets=np.zeros((len(rows), self.num_scores), np.float32))

    def predictions(self, scores: Tensor) -> list[Prediction]:
        found = []
        for row in scores.sigmoid().tolist():
            named = dict(zip(self.label_names, row, strict=True))
            found.append(Prediction(scores=named, labels=tuple(name for name, p in named.items() if p > 0.5)))
        return found

    @property
    def code_for_scores(self) -> str:
        return "print([[LABELS[i] for i in row.nonzero()[:, 0]] for row in logits > 0])"

    def accuracy(self, predictions: Predictions) -> float | None:
        return float((predictions.labels == predictions.predicted).all(1).double().mean())

    def figures(self, predictions: Predictions) -> Figures:
        """Micro F1, and macro F1: the mean over labels (0 for a label that no text has and none is given)."""
        true, found = predictions.labels.bool().numpy(), predictions.predicted.bool().numpy()
        right, either = (true & found).sum(0), true.sum(0) + found.sum(0)
        micro = float(2 * right.sum() / max(1, either.sum()))
        return Figures(micro, {"f1_macro": float((2 * right / np.maximum(1, either)).mean())})

    def anchors(self, train: Examples, test: Examples, split: Split) -> dict[str, float]:
        """Exact matches and micro F1 of the most frequent set of labels, overall and of each device."""
        sets = [[row.tobytes() for row in rows.answers.astype(bool)] for rows in (train, test)]
        known = {value: i for i, value in enumerate(dict.fromkeys([*sets[0], *sets[1]]))}
        codes = [np.array([known[value] for value in part], dtype=np.int64) for part in sets]
        said = majorities(codes[0], split)
        all_sets = np.array([np.frombuffer(value, bool) for value in known])
        own = in_own_metric(self.figures, test.answers, {name: all_sets[each] for name, each in said.items()})
        return accuracies(codes[1], said) | own

    def compared(self, train: Examples) -> Mapping[str, Column | None]:
        return {"label": train.answers}

    def grouped(self, train: Examples, test: Examples) -> tuple[Examples, Examples]:
        """Both sets with groups for partitions: of each row's labels, the one that is rarest in the training rows."""
        counts = train.answers.sum(0)
        rank = np.argsort(np.argsort(counts, kind="stable"), kind="stable")
        groups = []
        for rows in (train, test):
            ranks = np.where(rows.answers > 0, rank, self.num_scores)
            groups.append(np.where(rows.answers.any(1), ranks.argmin(1), self.num_scores).astype(np.int64))
        return replace(train, labels=groups[0]), replace(test, labels=groups[1])

    @model_validator(mode="after")
    def _labels_are_named(self) -> Self:
        if not self.label_names:
            raise ValueError("label_names is empty; name the labels")
        refuse_twice(self, "label_names")
        return self


class MultiLabel(Flagged, LabelledTexts):
    """Texts from tables with a column of labels: lists of names or ids, or text such as 'joy, anger'."""

    kind: Literal["multi_label"] = "multi_label"
    label_column: str = Field("labels", description="column of the labels")

    found_in_files: ClassVar[bool] = True

    @classmethod
    def examined(
        cls, config: DataConfig, user_column: str | None, label_names: Sequence[str]
    ) -> tuple[OwnData, dict[str, Any]]:
        found = examine(config, user_column, answers=OwnFlags(label_names))
        return found, {"text_columns": list(found.columns), "label_column": found.label_column}

    def rows_of(self, tables: Sequence[Table], config: DataConfig) -> list[Examples]:
        parts = []
        for table in tables:
            where = table.where
            content, rows = self.complete(table, config)
            texts = [texts_of(content[column], f"{where}, column '{column}'") for column in self.text_columns]
            own = class_names(content.schema.metadata, self.label_column)
            flags = flags_of(
                content[self.label_column], self.label_names, own, f"{where}, column '{self.label_column}'", rows
            )
            second = texts[1] if len(texts) == 2 else None
            origin = Origin.of(where, table.content.num_rows, rows)
            parts.append(Examples(texts[0], second, np.zeros(len(flags), np.int64), origin=origin, targets=flags))
        return parts

    @property
    def needed(self) -> tuple[str, ...]:
        """The texts only: rows without labels are answers too."""
        return self.text_columns

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Examples, Examples]:
        return self.grouped(*super().load(config, seed, user_column))


class Mentions(Flagged):
    """The embedded messages with any number of topics (`data.mentions`)."""

    kind: Literal["mentions"] = "mentions"
    label_names: tuple[str, ...] = Field(
        mentions.NAMES_OF_TOPICS, description="names of the topics; there are no others"
    )

    uses: ClassVar[tuple[str, ...]] = ("max_length",)
    embedded: ClassVar[str | None] = "mentions"

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Examples, Examples]:
        return self.grouped(*generated(mentions.generate, seed, config.mentions))

    @model_validator(mode="after")
    def _topics_are_known(self) -> Self:
        if self.label_names != mentions.NAMES_OF_TOPICS:
            raise ValueError("label_names has no effect with kind mentions; remove it")
        return self
