"""Describes a data set: columns, classes, prompts and metric. One YAML file per set in `configs/tasks/`.

`settings.py` says where the rows are, `partition.py` how devices share them. A task for your own files is made from the
files (`own.py`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from fibec_ray.data.instructions import PLACEHOLDER, Columns, InstructionFormat

MASK = "<mask>"
"""Stands for the tokenizer's own mask token in a template."""


class HubDifferences(BaseModel, frozen=True, extra="forbid"):
    """Columns and splits of the hub's copy, if they differ from the task's; None: the same."""

    text_columns: tuple[str, ...] | None = Field(None, description="the hub's names of the text columns")
    label_column: str | None = Field(None, description="the hub's name of the label column")
    train_splits: tuple[str, ...] | None = Field(None, description="the hub's splits of training rows")
    eval_split: str | None = Field(None, description="the hub's split of test rows")


class Task(BaseModel, frozen=True, extra="forbid"):
    """One data set. The order of `label_names` decides the class ids, whatever order a file uses.

    kind: text (files or the hub), synthetic (texts of the embedded grammar), digits (scikit-learn's images), regression
    (an embedded function), instructions (files or the hub) and exercises (embedded), which are answered in text.
    digits and regression have no text, so no columns and no prompts. Only text, synthetic and digits have classes.
    """

    name: str = Field(min_length=1, description="shown in logs and reports")
    kind: Literal["text", "synthetic", "digits", "regression", "instructions", "exercises"] = Field(
        "text", description="where rows come from and how they are answered, see above"
    )
    hub: str | None = Field(None, description="data set on the Hugging Face hub; None: local files only")
    hub_config: str | None = Field(None, description="configuration of the set on the hub, such as sst2 of glue")
    hub_differs: HubDifferences = HubDifferences()
    text_columns: tuple[str, ...] = Field(
        ("sentence",), min_length=1, max_length=2, description="column of the text, or two columns for pairs of texts"
    )
    label_column: str = Field("label", description="column of the class labels")
    label_names: tuple[str, ...] = Field((), description="class names in the order of their ids")
    label_aliases: dict[str, str] = Field({}, description="other spellings of class names, as some copies have them")
    template: str = Field(
        "", description="prompt for head masked_lm, with {a}, {b} and one <mask>; other heads need none"
    )
    causal_template: str = Field("", description="prompt for head causal_lm; its next token is the answer")
    verbaliser: tuple[str, ...] = Field(
        (), description="one word for each class, in the order of label_names; for heads of language models"
    )
    metric: Literal["accuracy", "mcc", "accuracy_f1", "r2"] = Field(
        "accuracy", description="the task's own metric; mcc: Matthews correlation; accuracy_f1: mean of both"
    )
    train_splits: tuple[str, ...] = Field(("train",), min_length=1, description="splits of the training rows")
    eval_split: str | None = Field(
        "validation", description="split of the test rows; null: data.test_fraction of the training rows are held out"
    )
    instructions: InstructionFormat | None = Field(
        None, description="columns and prompt, if answers are texts; null: the defaults"
    )

    @property
    def is_text(self) -> bool:
        """True if samples are texts."""
        return self.kind not in ("digits", "regression")

    @property
    def answers_in_text(self) -> bool:
        """True if models answer in text (instructions)."""
        return self.kind in ("instructions", "exercises")

    @property
    def has_classes(self) -> bool:
        """Whether the task is to classify texts."""
        return self.kind in ("text", "synthetic")

    @property
    def num_classes(self) -> int:
        """Number of scores a model outputs; 1 in a regression, 0 if answers are texts."""
        return 1 if self.kind == "regression" else len(self.label_names)

    @property
    def format(self) -> InstructionFormat:
        """How instructions become prompts."""
        return self.instructions or InstructionFormat()

    def first_classes(self, num_classes: int) -> Task:
        """The same task with its first classes only, for a smaller embedded task."""
        names = self.label_names[:num_classes]
        aliases = {other: name for other, name in self.label_aliases.items() if name in names}
        cut = {"label_names": names, "verbaliser": self.verbaliser[:num_classes], "label_aliases": aliases}
        return self.model_copy(update=cut)

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Task:
        of_source = ("hub", "hub_config", "train_splits", "eval_split")
        used = {
            "text": [key for key in type(self).model_fields if key != "instructions"],
            "synthetic": [key for key in type(self).model_fields if key != "instructions"],
            "digits": ["label_names"],
            "regression": [],
            "instructions": ["instructions", *of_source],
            "exercises": ["instructions"],
        }[self.kind] + ["name", "kind", "metric"]
        unused = [key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default]
        if unused := [key for key in unused if key not in used]:
            raise ValueError(f"{unused[0]} has no effect with kind {self.kind}; remove it")
        if self.kind == "exercises" and self.format.columns != Columns():
            raise ValueError("instructions.columns has no effect with kind exercises; remove it")
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> Task:
        if (self.kind == "regression") != (self.metric == "r2"):
            raise ValueError(f"metric {self.metric} does not fit kind {self.kind}; r2 is for a regression, and only r2")
        if self.answers_in_text and self.metric != "accuracy":
            raise ValueError(
                f"metric {self.metric} does not fit kind {self.kind}; accuracy is the share of exact answers"
            )
        if self.kind not in ("regression", "instructions", "exercises") and len(self.label_names) < 2:
            raise ValueError(f"label_names has {len(self.label_names)} names; give 2 or more")
        if self.verbaliser and len(self.verbaliser) != len(self.label_names):
            raise ValueError(
                f"verbaliser has {len(self.verbaliser)} words for {len(self.label_names)} label_names; "
                "give one for each"
            )
        for field in ("label_names", "verbaliser", "text_columns", "train_splits"):
            values = getattr(self, field)
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"{field} has {twice[0]!r} twice; every entry must differ")
        if empty := [word for word in self.verbaliser if not word.strip()]:
            raise ValueError(f"verbaliser has an empty word {empty[0]!r}; give a word for each label")
        if unknown := [name for name in self.label_aliases.values() if name not in self.label_names]:
            raise ValueError(f"label_aliases: {unknown[0]!r} is not among label_names {list(self.label_names)}")
        if self.metric in ("mcc", "accuracy_f1") and len(self.label_names) != 2:
            raise ValueError(f"metric {self.metric} needs 2 labels, there are {len(self.label_names)}; use accuracy")
        return self

    @model_validator(mode="after")
    def _check_templates(self) -> Task:
        if not self.has_classes:
            return self
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

    @model_validator(mode="after")
    def _check_source(self) -> Task:
        if self.kind == "synthetic" and self.hub is not None:
            raise ValueError(f"hub {self.hub!r} has no effect with kind synthetic; remove it")
        if self.hub is None and (self.hub_config is not None or self.hub_differs != HubDifferences()):
            raise ValueError("hub_config and hub_differs have no effect without hub; remove them")
        if self.kind in ("text", "instructions") and self.eval_split in self.train_splits:
            raise ValueError(
                f"eval_split {self.eval_split!r} is among train_splits; evaluate on rows that are not trained on"
            )
        other = self.hub_differs.text_columns
        if other is not None and len(other) != len(self.text_columns):
            raise ValueError(
                f"hub_differs.text_columns has {len(other)} columns, text_columns {len(self.text_columns)}"
            )
        return self
