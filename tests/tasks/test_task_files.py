"""Every task file loads, and a row that contradicts itself is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from fibec_ray.tasks import Task, parse_task

FOLDER = Path(__file__).parents[2] / "configs" / "tasks"
FILES = sorted(FOLDER.glob("*.yaml"))
PAIR = {
    "name": "pair",
    "text_columns": ("x", "y"),
    "label_names": ("no", "yes"),
    "template": "{a} ? <mask> , {b}",
    "causal_template": "{a} {b} Answer:",
    "verbaliser": ("No", "Yes"),
}


def read(name: str) -> Task:
    return parse_task(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


PREFERENCES = ("preferences", "ultrafeedback", "hh-rlhf")
TAGS = ("tagging", "conll2003", "wnut17")
LATER = (*TAGS, "similar", "stsb", "mentions", "go-emotions", "shapes", "cifar10", *PREFERENCES)
"""Sets of kinds that the paper does not have."""


def test_the_ten_sets_of_the_paper_and_the_embedded_ones_are_there() -> None:
    ten = ["boolq", "cola", "mpqa", "mr", "mrpc", "qnli", "rte", "sst2", "subj", "trec"]
    assert [path.stem for path in FILES] == sorted(
        [*ten, "synthetic", "digits", "regression", "fisher-kpp", "instructions", "dolly", "alpaca", *LATER]
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_task_file_loads_and_opens_with_the_command_that_runs_it(path: Path) -> None:
    assert read(path.stem).name == path.stem
    assert path.read_text().startswith("# fibec-ray run ") and f"task={path.stem}" in path.read_text()


def test_metrics_are_those_of_the_protocol() -> None:
    metrics = {path.stem: read(path.stem).metric for path in FILES}
    assert {name: metric for name, metric in metrics.items() if metric != "accuracy"} == {
        "cola": "mcc",
        "mrpc": "accuracy_f1",
        "fisher-kpp": "r2",
        "regression": "r2",
        "similar": "pearson",
        "stsb": "pearson",
        "mentions": "f1_micro",
        "go-emotions": "f1_micro",
        "tagging": "span_f1",
        "conll2003": "span_f1",
        "wnut17": "span_f1",
    }


def test_bare_no_in_yaml_does_not_become_false() -> None:
    assert read("mrpc").verbaliser == ("No", "Yes") and read("boolq").label_names == ("False", "True")


def test_first_classes_cuts_names_and_words_alike() -> None:
    small = read("synthetic").first_classes(2)
    assert (small.num_classes, small.verbaliser) == (2, ("weather", "travel"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"verbaliser": ("No",)}, "1 words for 2 label_names"),
        ({"verbaliser": ("No", "No")}, "'No' twice"),
        ({"verbaliser": ("No", " ")}, "empty word"),
        ({"label_names": ("no", "no")}, "'no' twice"),
        ({"template": "{a} ? <mask>"}, r"placeholders \['a'\]"),
        ({"template": "{a} {b} {c} <mask>"}, "placeholders"),
        ({"template": "{a} {a} {b} <mask>"}, "placeholders"),
        ({"template": "{a} {b}"}, "0 <mask>"),
        ({"template": "<mask> {a} {b} <mask>"}, "2 <mask>"),
        ({"causal_template": "{a} {b} <mask>"}, "1 <mask>, it must have 0"),
        ({"causal_template": "{a} {b} Answer: "}, "white space"),
        ({"text_columns": ("x",)}, "placeholders"),
        ({"label_aliases": {"y": "yep"}}, "'yep' is not among label_names"),
        ({"metric": "mcc", "label_names": ("a", "b", "c"), "verbaliser": ("a", "b", "c")}, "needs 2 labels"),
        ({"kind": "synthetic", "hub": "x/y"}, "hub\n  Extra inputs"),
        ({"hub_config": "rte"}, "no effect without hub"),
        ({"hub": "x/y", "hub_differs": {"text_columns": ("text",)}}, "1 columns"),
        ({"eval_split": "train"}, "not trained on"),
        ({"verbalizer": ("No", "Yes")}, "Extra inputs"),
    ],
)
def test_contradiction_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        parse_task(PAIR | change)
