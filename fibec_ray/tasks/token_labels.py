"""A tag for each word, such as named entities: from tables (`token_labels`), or generated (`tagging`).

The loss of a sample is the mean over its words. Scores are those of our own linear head on the last state of each
word's first token (backbone.head: mean_pool, without the mean).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.answers import Readout
from fibec_ray.data import tagging
from fibec_ray.data.dealing import Ints, Split
from fibec_ray.data.encode_tagged import encode_tagged
from fibec_ray.data.examples import Origin
from fibec_ray.data.heterogeneity import Column, majorities
from fibec_ray.data.sets import SampleSet
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.source import Table
from fibec_ray.data.tag_columns import tagged_rows
from fibec_ray.data.tagged import OUTSIDE, Span, Tagged, entity_types, most_frequent_types, spans
from fibec_ray.encoder import Encoder
from fibec_ray.errors import DataError
from fibec_ray.likelihoods import NO_TAG
from fibec_ray.models.base import AnyBackbone
from fibec_ray.tasks.base import generated, refuse_twice
from fibec_ray.tasks.baselines import accuracies
from fibec_ray.tasks.prediction import Prediction
from fibec_ray.tasks.scores import Figures
from fibec_ray.tasks.tables import LabelledTexts
from fibec_ray.tasks.texts import Texts, parts_of
from fibec_ray.types import Predictions


class WordTags(Texts):
    """Words with a tag each. Partitions by label deal by the most frequent type of entity in a row.

    accuracy is the share of words with the right tag. Words that data.max_length cuts off are not scored.
    """

    text_columns: tuple[str, ...] = Field(
        ("tokens",), min_length=1, max_length=1, description="column of the words: lists, or text with spaces"
    )
    label_names: tuple[str, ...] = Field((), description="names of the tags in the order of their ids")
    metric: Literal["span_f1", "accuracy"] = Field(
        "span_f1",
        description="the task's own metric; span_f1: F1 of whole entities in BIO tags; accuracy: of words, for other "
        "tags",
    )

    likelihood: ClassVar[str] = "tags"
    readout: ClassVar[Readout] = "token"
    pipeline: ClassVar[str | None] = "token-classification"

    @property
    def num_scores(self) -> int:
        return len(self.label_names)

    @property
    def score_names(self) -> tuple[str, ...]:
        return self.label_names

    def num_groups(self, train: Tagged) -> int | None:
        return len(entity_types(self.label_names))

    def unfit_for(self, backbone: AnyBackbone) -> str | None:
        if backbone.reads != "text" or backbone.adds_head:
            return None
        return (
            f"task {self.name} needs a tag for each word, and {backbone.scores_by} gives one answer for each sample; "
            "set backbone.head=mean_pool, which adds a linear head for tags"
        )

    def encode(self, rows: Tagged, encoder: Encoder) -> SampleSet:
        return encode_tagged(rows, encoder.tokenizer, self.name, encoder.max_length)

    def about_cuts(self, sets: Sequence[SampleSet], max_length: int) -> str:
        cuts = super().about_cuts(sets, max_length)
        return f"{cuts}; words behind the cut are not scored" if cuts else ""

    def compared(self, train: Tagged) -> Mapping[str, Column | None]:
        return {"label": train.labels}

    def anchors(self, train: Tagged, test: Tagged, split: Split) -> dict[str, float]:
        """Accuracy over words of the most frequent tag, and of each device's own. Its span F1 is 0 if it is O."""
        words = Split(_words_of(train, split.train), _words_of(test, split.test))
        return accuracies(test.all_tags, majorities(train.all_tags, words))

    def accuracy(self, predictions: Predictions) -> float | None:
        real = predictions.labels != NO_TAG
        return float((predictions.labels == predictions.predicted)[real].double().mean())

    def figures(self, predictions: Predictions) -> Figures:
        """Precision, recall and F1 of entities, pooled over rows. None if there are no entities and none predicted."""
        if self.metric == "accuracy":
            return Figures(self.accuracy(predictions))
        true, predicted = self._entities(predictions.labels), self._entities(predictions.predicted)
        if not true and not predicted:
            return Figures(None)
        right = len(true & predicted)
        precision, recall = right / max(1, len(predicted)), right / max(1, len(true))
        return Figures(2 * right / (len(true) + len(predicted)), {"precision": precision, "recall": recall})

    def _entities(self, tags: Tensor) -> set[tuple[int, Span]]:
        """The entities of all rows, with their row. tags: (n, T), NO_TAG behind the last of a row."""
        named = [[self.label_names[tag] for tag in row if tag != NO_TAG] for row in tags.tolist()]
        return {(row, span) for row, each in enumerate(named) for span in spans(each)}

    def predictions(self, scores: Tensor) -> list[Prediction]:
        """One tag for each word. scores: (N, T, C), NaN behind the last word of an input."""
        counts = (~scores[:, :, 0].isnan()).sum(1).tolist()
        likeliest = scores.argmax(2).tolist()
        return [
            Prediction(labels=[self.label_names[tag] for tag in row[:count]])
            for row, count in zip(likeliest, counts, strict=True)
        ]

    @property
    def code_for_scores(self) -> str:
        return (
            "print([LABELS[i] for i in logits[0].argmax(1)])  # for each token; a word's tag is that of its first one"
        )

    def rows_to_predict(self, inputs: Any, shape: tuple[int, ...]) -> Tagged:
        """inputs: texts with spaces between words, or lists of words."""
        words = [_words(value, at, self.name) for at, value in enumerate(inputs)]
        return Tagged(words, [[0] * len(row) for row in words], np.zeros(len(words), np.int64))

    @model_validator(mode="after")
    def _tags_fit(self) -> Self:
        if len(self.label_names) < 2:
            raise ValueError(f"label_names has {len(self.label_names)} names; give 2 or more")
        refuse_twice(self, "label_names")
        odd = [name for name in self.label_names if name != OUTSIDE and (name[:2] not in ("B-", "I-") or not name[2:])]
        if self.metric == "span_f1" and (odd or OUTSIDE not in self.label_names):
            problem = f"{odd[0]!r} is not a BIO tag" if odd else f"{OUTSIDE!r} is missing"
            raise ValueError(
                f"metric span_f1 needs label_names such as O, B-PER, I-PER, and {problem}; for other tags set metric: "
                "accuracy"
            )
        return self


class TokenLabels(WordTags, LabelledTexts):
    """Words and tags from tables."""

    kind: Literal["token_labels"] = "token_labels"
    label_column: str = Field("ner_tags", description="column of the tags: lists, or text with spaces")

    def rows_of(self, tables: Sequence[Table], config: DataConfig) -> list[Tagged]:
        return [self._read(table, config) for table in tables]

    def _read(self, table: Table, config: DataConfig) -> Tagged:
        content, where = table
        columns = (self.text_columns[0], self.label_column)
        words, tags, rows = tagged_rows(content, columns, self.label_names, where, config.drop_missing)
        labels = most_frequent_types(tags, self.label_names)
        return Tagged(words, tags, labels, origin=Origin.of(where, content.num_rows, rows))

    def strata(self, train: Tagged) -> Any:
        return train.labels

    def notes(self, config: DataConfig, train: Tagged, test: Tagged) -> Sequence[str]:
        dropped = sum(rows.origin.dropped for rows in (train, test) if rows.origin is not None)
        return (f"{dropped} rows without words or tags were left out",) if dropped else ()


class Tagging(WordTags):
    """The messages of the embedded task with tags of places, names, things and times (`data.tagging`)."""

    kind: Literal["tagging"] = "tagging"
    label_names: tuple[str, ...] = Field(
        tagging.LABEL_NAMES, description="names of the tags; those of the generated rows"
    )

    uses: ClassVar[tuple[str, ...]] = ("max_length",)
    embedded: ClassVar[str | None] = "tagging"

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Tagged, Tagged]:
        return generated(tagging.generate, seed, config.tagging)

    @model_validator(mode="after")
    def _own_tags(self) -> Self:
        if self.label_names != tagging.LABEL_NAMES:
            raise ValueError(
                f"label_names has no effect with kind tagging; remove it ({', '.join(tagging.LABEL_NAMES)})"
            )
        return self


def _words(value: Any, at: int, task: str) -> list[str]:
    found = value.split() if isinstance(value, str) else list(parts_of(value))
    if not found or not all(isinstance(word, str) for word in found):
        raise DataError(
            f"input {at}: task {task} takes a text with spaces between words, or a list of words; this is {value!r:.60}"
        )
    return found


def _words_of(rows: Tagged, shards: Sequence[Ints]) -> list[Ints]:
    """Positions in `all_tags` of the words of each shard's rows."""
    row_of_each = rows.row_of_each
    return [np.flatnonzero(np.isin(row_of_each, shard)) for shard in shards]
