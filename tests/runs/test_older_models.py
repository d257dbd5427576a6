"""fibec_ray.json of earlier releases: what was `num_classes` and `prompts` is read as answers and a task."""

from __future__ import annotations

from typing import Any

import pytest

from fibec_ray.runs.older_models import of_older_file
from fibec_ray.runs.saved_model import SavedModel

COMMON: dict[str, Any] = {
    "name": "old", "method": "fedavg", "round": 3, "created": "2026-01-01", "versions": {}, "backbone": {},
    "peft": {"kind": "lora"}, "seed": 0, "batch_size": 4,
}  # fmt: skip
PROMPTS = {"task": "t", "text_columns": [], "template": "", "causal_template": "", "instructions": None}


def read(num_classes: int, label_words: list[int] | None = None, names: tuple[str, ...] = (), **prompts: Any) -> Any:
    values = {"num_classes": num_classes, "label_words": label_words, "label_names": names}
    return SavedModel.model_validate(COMMON | values | {"prompts": PROMPTS | {"max_length": 16} | prompts})


def test_a_classifier_of_texts() -> None:
    about = read(2, names=("no", "yes"), text_columns=["a", "b"], template="{a} {b} <mask>")
    assert (about.task.kind, about.task.name, about.max_length) == ("text", "t", 16)
    assert (about.task.text_columns, about.task.label_names) == (("a", "b"), ("no", "yes"))
    assert about.answers.likelihood == "categorical" and about.answers.num_scores == 2


def test_classes_without_names_are_numbers() -> None:
    assert read(3, [4, 5, 6], text_columns=["s"]).task.label_names == ("0", "1", "2")
    assert read(3).task.kind == "digits" and read(3).task.label_names == ("0", "1", "2")


@pytest.mark.parametrize(("num_classes", "kind"), [(0, "instructions"), (1, "regression")])
def test_texts_and_values(num_classes: int, kind: str) -> None:
    about = read(num_classes)
    assert about.task.kind == kind and about.answers.num_scores == num_classes


def test_a_file_of_this_release_stays_as_it_is() -> None:
    about = read(2, text_columns=["s"])
    values = about.model_dump(mode="json")
    assert of_older_file(values) == values and SavedModel.model_validate(values) == about
