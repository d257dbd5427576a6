"""Classes of texts: from tables (`text`), or embedded (`synthetic`). Heads of language models answer with words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.data import synthetic
from fibec_ray.data.about import about_rows
from fibec_ray.data.columns import class_names, texts_of
from fibec_ray.data.dealing import Split
from fibec_ray.data.encode import MASK, encode, fill, label_word_ids
from fibec_ray.data.examples import Examples, Origin
from fibec_ray.data.heterogeneity import majorities
from fibec_ray.data.instructions import PLACEHOLDER
from fibec_ray.data.labels import LabelColumn, class_ids, read_labels
from fibec_ray.data.questions import Questions
from fibec_ray.data.sets import SampleSet
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.source import Table
from fibec_ray.encoder import Encoder
from fibec_ray.errors import DataError
from fibec_ray.models.base import AnyBackbone
from fibec_ray.tasks.base import Task, generated, refuse_twice
from fibec_ray.tasks.baselines import accuracies, in_own_metric
from fibec_ray.tasks.prediction import Prediction, most_likely
from fibec_ray.tasks.scores import Figures, share_right
from fibec_ray.tasks.tables import LabelledTexts
from fibec_ray.tasks.texts import Texts
from fibec_ray.types import Predictions

Metric = Literal["accuracy", "mcc", "accuracy_f1"]
PROMPTS = {"masked": "template", "causal": "causal_template"}
"""By the way that a backbone reads texts: the setting with the prompt that it needs."""


class Classes(Task):
    """Samples with one of several classes. The order of `label_names` decides the class ids, whatever order a file
    uses.
    """

    label_names: tuple[str, ...] = Field((), description="class names in the order of their ids")
    metric: Metric = Field(
        "accuracy", description="runs are compared by it; mcc: Matthews correlation; accuracy_f1: mean of both"
    )

    likelihood: ClassVar[str] = "categorical"
    words_per_class: ClassVar[str] = "label_names"
    """settings with an entry for each class, for messages"""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @property
    def num_scores(self) -> int:
        return self.num_classes

    @property
    def score_names(self) -> tuple[str, ...]:
        return self.label_names

    def first_classes(self, num_classes: int) -> Self:
        """The task with its first classes only. Raises DataError if it has fewer classes."""
        if num_classes > self.num_classes:
            raise DataError(
                f"data.{self.embedded}.num_classes: {num_classes}, but task {self.name} names {self.num_classes}; "
                f"lower it or add {self.words_per_class}"
            )
        return self.model_copy(update={"label_names": self.label_names[:num_classes]})

    def figures(self, predictions: Predictions) -> Figures:
        """mcc: Matthews correlation (CoLA). accuracy_f1: mean of accuracy and F1 of class 1 (MRPC)."""
        accuracy = share_right(predictions)
        if self.metric not in ("mcc", "accuracy_f1"):
            return Figures(accuracy)
        from sklearn.metrics import f1_score, matthews_corrcoef  # takes seconds, and most tasks need neither

        labels, predicted = predictions.labels.numpy(), predictions.predicted.numpy()
        if self.metric == "mcc":
            return Figures(float(matthews_corrcoef(labels, predicted)))
        return Figures((accuracy + float(f1_score(labels, predicted, zero_division=0))) / 2)

    def anchors(self, train: Any, test: Any, split: Split) -> dict[str, float]:
        said = majorities(train.labels, split)
        own = {} if self.metric == "accuracy" else in_own_metric(self.figures, test.labels, said)
        return accuracies(test.labels, said) | own

    def predictions(self, scores: Tensor) -> list[Prediction]:
        return [most_likely(self.label_names, row) for row in scores.softmax(1).tolist()]

    @model_validator(mode="after")
    def _enough_classes(self) -> Self:
        if len(self.label_names) < 2:
            raise ValueError(f"label_names has {len(self.label_names)} names; give 2 or more")
        refuse_twice(self, "label_names")
        if self.metric in ("mcc", "accuracy_f1") and len(self.label_names) != 2:
            raise ValueError(f"metric {self.metric} needs 2 labels, there are {len(self.label_names)}; use accuracy")
        return self


class TextClasses(Classes, Texts):
    """Texts, or pairs of texts, with classes; heads of language models read a prompt and answer with a word."""

    label_aliases: dict[str, str] = Field({}, description="other spellings of class names, as some copies have them")
    template: str = Field(
        "", description="prompt for head masked_lm, with {a}, {b} and one <mask>; other heads need none"
    )
    causal_template: str = Field("", description="prompt for head causal_lm; its next token is the answer")
    verbaliser: tuple[str, ...] = Field(
        (), description="one word for each class, in the order of label_names; for heads of language models"
    )

    pipeline: ClassVar[str | None] = "text-classification"
    words_per_class: ClassVar[str] = "label_names and verbaliser words"

    def encode(self, rows: Examples, encoder: Encoder) -> SampleSet:
        return encode(rows, self, encoder.tokenizer, encoder.mode, encoder.max_length)

    def questions(self, rows: Examples) -> Questions | None:
        """With causal_template as prompt and the verbaliser's words as answers."""
        if not self.causal_template or not self.verbaliser:
            return None
        pairs = zip(rows.texts_a, rows.texts_b or [""] * len(rows), strict=True)
        prompts = [fill(self.causal_template, {"{a}": a.strip(), "{b}": b.strip()}) for a, b in pairs]
        return Questions(prompts, words=self.verbaliser, labels=rows.labels.tolist())

    def label_words(self, encoder: Encoder) -> tuple[int, ...] | None:
        if encoder.mode == "plain":
            return None
        return tuple(label_word_ids(self, encoder.tokenizer, encoder.mode))

    def unfit_for(self, backbone: AnyBackbone) -> str | None:
        """Heads of language models need a prompt and one word for each class; classification heads need neither."""
        field = PROMPTS.get(backbone.encode_mode)
        if field is None or (getattr(self, field) and self.verbaliser):
            return None
        texts = " ".join(f"{{{name}}}" for name in ("a", "b")[: len(self.text_columns)])
        prompt = f"{texts} It was <mask>." if field == "template" else f"{texts} It was"
        words = ",".join(f"word{i}" for i in range(1, min(self.num_classes, 4) + 1))
        return (
            f"{backbone.scores_by} needs a prompt and one word for each class of task {self.name}; "
            f"set 'task.{field}=\"{prompt}\"' task.verbaliser=[{words}] with the words for "
            f"{', '.join(self.label_names[:8])}, or backbone.head=mean_pool, which needs neither"
        )

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if self.verbaliser and len(self.verbaliser) != len(self.label_names):
            raise ValueError(
                f"verbaliser has {len(self.verbaliser)} words for {len(self.label_names)} label_names; "
                "give one for each"
            )
        refuse_twice(self, "verbaliser")
        if empty := [word for word in self.verbaliser if not word.strip()]:
            raise ValueError(f"verbaliser has an empty word {empty[0]!r}; give a word for each label")
        refuse_other_aliases(self.label_aliases, self.label_names)
        return self

    @model_validator(mode="after")
    def _check_templates(self) -> Self:
        wanted = ["a", "b"][: len(self.text_columns)]
        for field, masks in (("template", 1), ("causal_template", 0)):
            text = getattr(self, field)
            if not text:
                continue  # only heads of language models need prompts
            found = sorted(PLACEHOLDER.findall(text))
            if found != wanted:
                raise ValueError(
                    f"{field} has the placeholders {found}, but {len(self.text_columns)} text_columns need {wanted}, "
                    "once each"
                )
            if text.count(MASK) != masks:
                raise ValueError(f"{field} has {text.count(MASK)} {MASK}, it must have {masks}")
        if self.causal_template != self.causal_template.rstrip():
            raise ValueError(
                "causal_template ends in white space; remove it, because the answer word has its own leading space"
            )
        return self


class TextClassification(TextClasses, LabelledTexts):
    """Texts from tables."""

    kind: Literal["text"] = "text"

    uses: ClassVar[tuple[str, ...]] = (*LabelledTexts.uses, "labels")
    found_in_files: ClassVar[bool] = True

    def rows_of(self, tables: Sequence[Table], config: DataConfig) -> list[Examples]:
        parts = [self._read(table, config) for table in tables]
        ids = class_ids([labels for *_, labels in parts], self, config.labels)
        return [
            Examples(texts[0], texts[1] if len(texts) == 2 else None, labels, origin=origin)
            for (texts, origin, _), labels in zip(parts, ids, strict=True)
        ]

    def _read(self, table: Table, config: DataConfig) -> tuple[list[list[str]], Origin, LabelColumn]:
        """Texts and labels of one table, before it is known what the labels mean."""
        where = table.where
        content, rows = self.complete(table, config)
        origin = Origin.of(where, table.content.num_rows, rows)
        names = class_names(content.schema.metadata, self.label_column)
        texts = [texts_of(content[column], f"{where}, column '{column}'") for column in self.text_columns]
        labels = read_labels(content[self.label_column], names, self, f"{where}, column '{self.label_column}'")
        return texts, origin, replace(labels, rows=rows)

    def strata(self, train: Examples) -> Any:
        return train.labels

    def notes(self, config: DataConfig, train: Examples, test: Examples) -> Sequence[str]:
        return about_rows(self, config, train, test)


class Synthetic(TextClasses):
    """The embedded task: messages to a city assistant, with a known true difficulty (`data.synthetic`)."""

    kind: Literal["synthetic"] = "synthetic"

    uses: ClassVar[tuple[str, ...]] = ("max_length",)
    embedded: ClassVar[str | None] = "synthetic"
    with_own_files: ClassVar[str | None] = "text"

    def effective(self, config: DataConfig) -> Self:
        """The same task with the first classes only, as many as `data.synthetic.num_classes`."""
        return super().effective(config).first_classes(config.synthetic.num_classes)

    def first_classes(self, num_classes: int) -> Self:
        cut = super().first_classes(num_classes)
        aliases = {other: name for other, name in self.label_aliases.items() if name in cut.label_names}
        return cut.model_copy(update={"verbaliser": self.verbaliser[:num_classes], "label_aliases": aliases})

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Examples, Examples]:
        return generated(synthetic.generate, seed, config.synthetic)


def refuse_other_aliases(aliases: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise ValueError for an alias of a class that the task does not name."""
    if unknown := [name for name in aliases.values() if name not in names]:
        raise ValueError(f"label_aliases: {unknown[0]!r} is not among label_names {list(names)}")
