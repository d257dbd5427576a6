"""The kinds of task: what samples are, how they are answered, and how answers are scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from fibec_ray.data.settings import DataConfig
from fibec_ray.errors import did_you_mean
from fibec_ray.tasks.base import Task, at_most
from fibec_ray.tasks.classification import Synthetic, TextClassification
from fibec_ray.tasks.generation import Exercises, FromInstructions
from fibec_ray.tasks.images import ImageClassification, Shapes
from fibec_ray.tasks.multi_label import Mentions, MultiLabel
from fibec_ray.tasks.pde import Pde
from fibec_ray.tasks.points import Digits, Regression
from fibec_ray.tasks.preferences import FromPreferences, PreferenceExercises
from fibec_ray.tasks.text_regression import SimilarTexts, TextRegression
from fibec_ray.tasks.token_labels import Tagging, TokenLabels

__all__ = ["DEFAULT", "TASKS", "AnyTask", "Task", "kind_of_task", "load", "parse_task", "without_former"]

KINDS: tuple[type[Task], ...] = (
    TextClassification,
    Synthetic,
    FromInstructions,
    Exercises,
    FromPreferences,
    PreferenceExercises,
    Digits,
    Regression,
    Pde,
    ImageClassification,
    Shapes,
    TextRegression,
    SimilarTexts,
    MultiLabel,
    Mentions,
    TokenLabels,
    Tagging,
)
TASKS: dict[str, type[Task]] = {str(cls.model_fields["kind"].default): cls for cls in KINDS}
DEFAULT = "text"
"""The kind of a task that names none."""


def kind_of_task(raw: Mapping[str, Any]) -> type[Task]:
    """The class of the kind that plain settings name. Raises ValueError for an unknown kind."""
    kind = raw.get("kind", DEFAULT)
    if not isinstance(kind, str) or kind not in TASKS:
        raise ValueError(f"no such kind {kind!r}; {did_you_mean(str(kind), TASKS)}")
    return TASKS[kind]


def parse_task(raw: Any) -> Task:
    """The task that plain settings describe. Raises ValueError."""
    if isinstance(raw, Task):
        return raw
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected a task's name or its settings, found {type(raw).__name__}")
    return kind_of_task(raw).model_validate(raw)


AnyTask = Annotated[SerializeAsAny[Task], BeforeValidator(parse_task)]


def load(task: Task, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Any, Any]:
    """The (train, test) rows of a task, at most `data.max_train` and `data.max_test`.

    user_column: its values become `users`. Raises DataError for each setting, file, column or row that does not fit.
    """
    actual = task.effective(config)
    return at_most(actual.load(config, seed, user_column), config, seed)


FORMER = (
    "hub",
    "hub_config",
    "hub_differs",
    "text_columns",
    "label_column",
    "label_names",
    "label_aliases",
    "template",
    "causal_template",
    "verbaliser",
    "train_splits",
    "eval_split",
    "instructions",
)
"""Settings that runs of earlier releases hold for every kind of task."""


def without_former(raw: dict[str, Any]) -> dict[str, Any]:
    """Settings of a saved run's task, without those that its kind does not have. They had no effect."""
    kind = TASKS.get(raw.get("kind", DEFAULT))
    return {key: value for key, value in raw.items() if kind is None or key in kind.model_fields or key not in FORMER}
