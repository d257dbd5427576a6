"""The base of all kinds of task.

A kind owns everything that depends on what samples are and how they are answered: which settings and columns it reads,
how rows become samples, how rows are dealt to devices, the likelihood of its answers, and its scores. Nothing outside
this package asks which kind a task is. A new kind is one file here and one line in `__init__.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from pydantic import BaseModel, Field
from torch import Tensor

from fibec_ray.answers import Answers, Readout
from fibec_ray.data.dealing import Ints, Split
from fibec_ray.data.examples import Rows
from fibec_ray.data.heterogeneity import Column, majorities
from fibec_ray.data.own import OwnData, examine
from fibec_ray.data.questions import Questions
from fibec_ray.data.sets import SampleSet
from fibec_ray.data.settings import EMBEDDED, TEST_FRACTION_INSTRUCTIONS, DataConfig
from fibec_ray.data.stamps import Stamp
from fibec_ray.encoder import Encoder, Reads
from fibec_ray.errors import DataError
from fibec_ray.likelihoods import LIKELIHOODS
from fibec_ray.models.base import AnyBackbone
from fibec_ray.tasks.baselines import accuracies
from fibec_ray.tasks.prediction import Prediction, most_likely
from fibec_ray.tasks.scores import Figures, Scores, mean_loss, perplexity, share_right
from fibec_ray.types import Predictions

NOT_FROM_TABLES = "this model predicts from numbers; use fibec_ray.load(RUN).predict(ARRAY) in Python"
ALWAYS = ("max_train", "max_test")
"""Settings of `data` that have an effect for every kind."""


class Splits(NamedTuple):
    """The named parts of a data set that a task reads."""

    train: tuple[str, ...]
    test: str | None
    """None: some of the training rows are held out, others for each seed"""


class Task(BaseModel, ABC, frozen=True, extra="forbid"):
    """One data set and what to do with it."""

    name: str = Field(min_length=1, description="shown in logs and reports")
    kind: str
    metric: str = Field("accuracy", description="the task's own metric")

    reads: ClassVar[Reads] = "text"
    likelihood: ClassVar[str] = "categorical"
    """of the answers; a key of `likelihoods.LIKELIHOODS`"""
    readout: ClassVar[Readout] = "sample"
    """where scores are read off a model; see `Answers`"""
    uses: ClassVar[tuple[str, ...]] = ()
    """settings of `data`, beside ALWAYS, that have an effect"""
    ignores: ClassVar[str] = "makes its own rows"
    """why other settings of `data` have none, after 'task NAME'"""
    has_columns: ClassVar[bool] = False
    """True if rows come from files or the hub, where a column can say whose they are"""
    found_in_files: ClassVar[bool] = False
    """True if columns and classes are found by looking at a user's files (data/own.py)"""
    with_own_files: ClassVar[str | None] = None
    """for an embedded task, the kind of task with which its settings run on a user's files; None: they do not"""
    needs_base: ClassVar[bool] = False
    """True if losses compare the model with its base, so the PEFT kind must allow passes without the adapter"""
    pipeline: ClassVar[str | None] = None
    """the Hugging Face hub's name for models of this kind"""
    has_texts: ClassVar[bool] = False
    """True if rows have texts, by which partitions can deal them"""
    embedded: ClassVar[str | None] = None
    """the section of `data` that says how many rows are generated; None: rows are not generated"""

    @classmethod
    def examined(
        cls, config: DataConfig, user_column: str | None, label_names: Sequence[str]
    ) -> tuple[OwnData, dict[str, Any]]:
        """What a user's files say, and the settings of the task with their columns, for a kind `found_in_files`.

        The arguments are those of `own.examine`. Raises DataError where the files leave a question open.
        """
        found = examine(config, user_column, label_names)
        return found, {"text_columns": list(found.columns), "label_column": found.label_column}

    # --- rows

    @property
    def splits(self) -> Splits | None:
        """The splits that it reads; None for a task whose rows are in no files."""
        return None

    def effective(self, config: DataConfig) -> Self:
        """The task with the columns and splits of its source. Raises DataError for settings that have no effect."""
        self.refuse_without_effect(config)
        return self

    @abstractmethod
    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Any, Any]:
        """The (train, test) rows, before `data.max_train` and `data.max_test`; call it on an `effective` task.

        user_column: its values become `users`. Raises DataError for each setting, file, column or row that does not
        fit.
        """

    def stamps(self, config: DataConfig) -> tuple[Stamp, ...]:
        """Stamps of the local files that rows are read from."""
        return ()

    @property
    @abstractmethod
    def num_scores(self) -> int:
        """Number of scores that a model gives: C classes, 1 value; 0 for answers in text."""

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of what a model scores, in order: classes, labels or tags; () for values and texts."""
        return ()

    def num_groups(self, train: Any) -> int | None:
        """Number of different `labels`, by which partitions deal rows; None if rows have no labels."""
        return self.num_scores

    def no_groups(self) -> str:
        """What to do where rows have no labels, for a message: 'the rows of task X have none; set ...'."""
        return f"the rows of task {self.name} have none"

    def refuse_without_effect(self, config: DataConfig) -> None:
        """Raise DataError for the first setting of `data` that differs from its default and has no effect."""
        own = {*ALWAYS, *self.uses, *([self.embedded] if self.embedded else [])}
        if self.is_old_fraction(config):
            own.add("test_fraction")
        for name in config.given(*(name for name in type(config).model_fields if name not in own)):
            raise DataError(f"data.{name}: has no effect, because {self._why_idle(name)}")

    @staticmethod
    def is_old_fraction(config: DataConfig) -> bool:
        """True for the `test_fraction` that earlier releases wrote into every run."""
        return config.test_fraction == TEST_FRACTION_INSTRUCTIONS

    def _why_idle(self, name: str) -> str:
        if (other := EMBEDDED.get(name)) is not None:
            return f"task {self.name} is of kind {self.kind}; remove it, or set task={other}"
        if name == "max_length":
            return f"task {self.name} has no text; remove it"
        return f"task {self.name} {self.ignores}; remove it"

    # --- samples

    @abstractmethod
    def encode(self, rows: Any, encoder: Encoder) -> SampleSet:
        """The samples as the model reads them. Raises DataError for rows that cannot be encoded."""

    def unfit_for(self, backbone: AnyBackbone) -> str | None:
        """Why the backbone cannot do this task, and what to do; None if it can. From settings alone."""
        return None

    def questions(self, rows: Any) -> Questions | None:
        """The rows as prompts with answers, for programs that evaluate language models; None if the kind has none."""
        return None

    def label_words(self, encoder: Encoder) -> tuple[int, ...] | None:
        """Token ids (C,) of the verbaliser's words, for backbones that answer with words; None for others."""
        return None

    def notes(self, config: DataConfig, train: Any, test: Any) -> Sequence[str]:
        """What the user should know about the rows."""
        return ()

    def about_cuts(self, sets: Sequence[SampleSet], max_length: int) -> str:
        """How many samples were truncated; '' if none were. sets: of training and of test."""
        return ""

    # --- answers and scores

    @property
    def has_countable_answers(self) -> bool:
        """False where the expectation over all answers is too long to compute, as for texts."""
        return LIKELIHOODS[self.likelihood].num_labels(max(1, self.num_scores)) is not None

    @property
    def writes_text(self) -> bool:
        """True if answers are texts."""
        return self.readout in ("response", "pair")

    @property
    def has_perplexity(self) -> bool:
        """True if losses are means over the tokens of a text."""
        return self.readout == "response"

    def answers(self, num_scores: int, label_words: tuple[int, ...] | None) -> Answers:
        """What a model gives for a sample. num_scores, label_words: as the data were prepared."""
        return Answers(likelihood=self.likelihood, num_scores=num_scores, readout=self.readout, label_words=label_words)

    def anchors(self, train: Any, test: Any, split: Split) -> dict[str, float]:
        """Baselines that need no model, on the test rows: the most frequent answer overall and of each device.

        Names that end in `_metric` are in the task's own metric, the others are accuracies (or R2).
        """
        return accuracies(test.labels, majorities(train.labels, split))

    def compared(self, train: Any) -> Mapping[str, Column | None]:
        """Columns of the training rows that the report compares between devices (`data/heterogeneity.py`)."""
        return {"label": train.labels}

    # --- trained models

    def rows_to_predict(self, inputs: Any, shape: tuple[int, ...]) -> Any:
        """Rows of what a user gives a trained model, with made-up labels.

        shape: of a sample of numbers, as the model was trained. Raises DataError with the position of an input that
        does not fit.
        """
        raise DataError(
            f"task {self.name}: kind {self.kind} does not say how inputs become rows (`rows_to_predict` in its class), "
            "so its models cannot predict; use the adapter with transformers and PEFT"
        )

    def predictions(self, scores: Tensor) -> list[Prediction]:
        """What (N, C) scores of a trained model say, for N inputs. Classes are called 0, 1 ... here."""
        names = [str(i) for i in range(scores.shape[1])]
        return [most_likely(names, row) for row in scores.softmax(1).tolist()]

    @property
    def code_for_scores(self) -> str:
        """Python that prints what `logits` (N, C) of a trained model say, for model cards. LABELS: `score_names`."""
        return "print([LABELS[i] for i in logits.argmax(1)])"

    def input_columns(self, there: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
        """Columns of a table with inputs for a trained model.

        chosen: by the user; empty: the task's own. Raises DataError if a column is missing or inputs are not texts.
        """
        raise DataError(NOT_FROM_TABLES)

    @property
    def typed_columns(self) -> tuple[str, ...]:
        """What the columns of inputs that a user types are called; empty if inputs are not texts."""
        return ()

    def score(self, predictions: Predictions) -> Scores | None:
        """Scores of pooled predictions, computed together (never as a mean over devices); None if there are none."""
        if not len(predictions.labels):
            return None
        metric, more = self.figures(predictions)
        metrics = list(more.items()) or None
        per_token = perplexity(predictions) if self.has_perplexity else None
        return Scores(self.accuracy(predictions), mean_loss(predictions), metric, per_token, metrics)

    def accuracy(self, predictions: Predictions) -> float | None:
        """Share of right answers among some predictions, at least one; None where no answer is simply right."""
        return share_right(predictions)

    def figures(self, predictions: Predictions) -> Figures:
        """The task's own metric and further figures of some predictions, at least one."""
        return Figures(self.accuracy(predictions))


def refuse_twice(task: Task, *fields: str) -> None:
    """Raise ValueError for a field that has an entry twice."""
    for field in fields:
        values = getattr(task, field)
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"{field} has {twice[0]!r} twice; every entry must differ")


class Counts(Protocol):
    """Settings of an embedded task."""

    @property
    def num_train(self) -> int:
        """Training rows to generate."""

    @property
    def num_test(self) -> int:
        """Test rows to generate."""


S = TypeVar("S", bound=Counts)
R = TypeVar("R")


def generated(generate: Callable[[int, int, str, S], R], seed: int, settings: S) -> tuple[R, R]:
    """The (train, test) rows of an embedded task. generate: (number, seed, split, settings) -> rows."""
    return generate(settings.num_train, seed, "train", settings), generate(settings.num_test, seed, "test", settings)


def at_most(rows: tuple[Rows, Rows], config: DataConfig, seed: int) -> tuple[Rows, Rows]:
    """Seeded subsets of the (train, test) rows, as `data.max_train` and `data.max_test` say."""
    train, test = rows
    return train.at_most(config.max_train, seed, "train"), test.at_most(config.max_test, seed, "test")


def numbered(values: Sequence[Sequence[Any]]) -> list[Ints]:
    """Positions of values among all different ones, in order of first appearance: one array for each sequence."""
    numbers: Mapping[Any, int] = {
        value: i for i, value in enumerate(dict.fromkeys(value for part in values for value in part))
    }
    return [np.array([numbers[value] for value in part], dtype=np.int64) for part in values]
