"""What the readers of this package need to know of a task: its files, its classes, its prompts.

The kinds of task (`fibec_ray/tasks/`) have these fields; readers see no more of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Named(Protocol):
    """Something with a name for messages."""

    @property
    def name(self) -> str:
        """The task's name."""


class OnHub(Named, Protocol):
    """A data set on the Hugging Face hub."""

    @property
    def hub(self) -> str | None:
        """Id of the data set."""

    @property
    def hub_config(self) -> str | None:
        """Its configuration, such as sst2 of glue."""


class Splits(Named, Protocol):
    """The splits of a data set."""

    @property
    def train_splits(self) -> tuple[str, ...]:
        """Splits of training rows."""

    @property
    def eval_split(self) -> str | None:
        """Split of test rows; None: rows are held out."""


class Classes(Named, Protocol):
    """The classes of a classification."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in the order of their ids."""

    @property
    def label_aliases(self) -> Mapping[str, str]:
        """Other spellings of class names."""


class Prompted(Named, Protocol):
    """Texts with prompts for language models."""

    @property
    def text_columns(self) -> tuple[str, ...]:
        """One column, or two for pairs."""

    @property
    def template(self) -> str:
        """Prompt for a masked language model."""

    @property
    def causal_template(self) -> str:
        """Prompt for a decoder."""

    @property
    def verbaliser(self) -> tuple[str, ...]:
        """One word for each class."""
