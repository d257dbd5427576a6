"""Files of a user become an experiment: `data.path=my.csv` and nothing else."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hostile_data
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check, load_experiment
from fibec_ray.config.names import config_folder
from fibec_ray.data.about import about_rows
from fibec_ray.errors import ConfigError, DataError, UserError
from fibec_ray.runs.simulation import resolved
from fibec_ray.tasks import load

TEXTS = [f"{words} number {i}" for i, words in enumerate(["a warm and funny film", "a dull, slow film"] * 30)]
LABELS = ["pos", "neg"] * 30
CLASS_LABEL = json.dumps({"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, columns: dict[str, Sequence[Any]], delimiter: str = ",", codec: str = "utf-8") -> str:
    """A file in the format of its suffix."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if file.suffix == ".parquet":
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        names = {"huggingface": CLASS_LABEL} if isinstance(columns.get("label", [""])[0], int) else None
        pyarrow.parquet.write_table(table.replace_schema_metadata(names), file)
        return path
    text = io.StringIO(newline="")
    if ".json" in path:
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        writer = csv.writer(text, delimiter=delimiter)
        writer.writerows([list(columns), *(list(row.values()) for row in rows)])
    content = text.getvalue().encode(codec)
    file.write_bytes(gzip.compress(content) if path.endswith(".gz") else content)
    return path


def own(path: str, *overrides: str) -> Experiment:
    return load_experiment(config_folder() / "own-data.yaml", [f"data.path={path}", *overrides])


def refused(path: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        own(path, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reviews(path: str = "reviews.csv", **more: Sequence[Any]) -> str:
    return write(path, {"review": TEXTS, "sentiment": LABELS, **more})


# --- columns and classes


@pytest.mark.parametrize(
    ("columns", "texts", "label"),
    [
        (("text", "label"), ("text",), "label"),
        (("id", "Review Text", "Rating"), ("Review Text",), "Rating"),
        (("airline_sentiment", "airline_sentiment_confidence", "tweet_text"), ("tweet_text",), "airline_sentiment"),
        (("premise", "hypothesis", "gold_label"), ("premise", "hypothesis"), "gold_label"),
        (("qid", "Question1", "Question2", "target"), ("Question1", "Question2"), "target"),
        (("sentence_A", "sentence_B", "class"), ("sentence_A", "sentence_B"), "class"),
        (("question", "passage", "answer"), ("question", "passage"), "answer"),
        (("title", "content", "topic"), ("content",), "topic"),
        (("label_text", "label", "text"), ("text",), "label"),
        (("user_id", "message", "intent", "score"), ("message",), "intent"),
        (("was", "zzz"), ("zzz",), "was"),
    ],
)
def test_columns_are_found(columns: tuple[str, ...], texts: tuple[str, ...], label: str) -> None:
    values = {name: TEXTS if name in texts else LABELS if name == label else range(60) for name in columns}
    task = own(write("a.csv", values)).task
    assert (task.text_columns, task.label_column, task.label_names) == (texts, label, ("neg", "pos"))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([3, 1, 10] * 20, ("1", "3", "10")),
        ([2.0, 1.0] * 30, ("1", "2")),
        ([True, False] * 30, ("False", "True")),
        (["b ", "A", "b"] * 20, ("A", "b")),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_classes_are_in_the_order_of_numbers_or_the_alphabet(
    values: list[Any], names: tuple[str, ...], suffix: str
) -> None:
    columns = {"text": TEXTS, "y": values}
    experiment = own(write(f"a{suffix}", columns))
    assert experiment.task.label_names == names and experiment.data.labels == "names"


def test_a_files_own_class_names_are_used() -> None:
    task = own(write("a.parquet", {"text": TEXTS, "label": [1, 0] * 30})).task
    assert task.label_names == ("bad", "good")


def test_names_that_the_user_sets_go_first() -> None:
    columns = {"text": TEXTS, "other": TEXTS[::-1], "label": LABELS, "mood": ["x", "y", "z"] * 20}
    task = own(write("a.csv", columns), "data.text=other", "data.label=mood").task
    assert (task.text_columns, task.label_column, task.num_classes) == (("other",), "mood", 3)
    assert own("a.csv", "data.text=[text,other]").task.text_columns == ("text", "other")
    assert own("a.csv", "task.label_names=[pos,neg]").task.label_names == ("pos", "neg")


@pytest.mark.parametrize(
    ("columns", "overrides", "says"),
    [
        ({"a": TEXTS, "b": TEXTS[::-1], "label": LABELS}, (), "which column is the text; name it: data.text=COLUMN"),
        (
            {"text": TEXTS, "x": LABELS, "z": LABELS},
            (),
            "which column is the label.* data.label=COLUMN.*'text', 'x', 'z'",
        ),
        ({"a": range(60), "b": range(60)}, (), "the text and which is the label; name them: data.text=COLUMN data"),
        ({"text": TEXTS, "label": LABELS}, ("data.text=txet",), "no column 'txet'; did you mean 'text'"),
        ({"text": TEXTS, "label": LABELS}, ("data.lable=text",), "data.lable: no such key; did you mean 'labels'"),
        ({"text": TEXTS, "label": ["same"] * 60}, (), "every row has the label 'same'; 2 or more classes"),
        ({"text": TEXTS, "label": [i / 7 for i in range(60)]}, (), "the labels are fractions such as \\d.*scores"),
        ({"text": TEXTS, "label": TEXTS}, (), "60 different values in 60 rows"),
        ({"text": TEXTS, "label": ["pos", ""] + LABELS[2:]}, (), "no label in row 1; .*data.drop_missing=true"),
        ({TEXTS[0]: TEXTS, "pos": LABELS}, (), "the first line looks like data.*data.header=false"),
    ],
)
def test_open_questions_are_asked(columns: dict[str, Any], overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        own(write("a.csv", columns), *overrides)


def test_the_remedies_of_the_questions_work() -> None:
    write("a.csv", {TEXTS[0]: TEXTS[1:], "pos": LABELS[1:]})
    assert own("a.csv", "data.header=false").task.text_columns == ("f0",)
    write("b.csv", {"text": TEXTS, "label": ["pos", ""] + LABELS[2:]})
    assert own("b.csv", "data.drop_missing=true").task.label_names == ("neg", "pos")


# --- files


def test_a_folder_has_training_and_test_files() -> None:
    write("kaggle/Train.csv", {"text": TEXTS, "label": LABELS})
    write("kaggle/Test.csv", {"text": TEXTS[:10], "label": LABELS[:10]})
    write("kaggle/sample_submission.csv", {"id": [1]})
    for path in ("kaggle", "kaggle/Train.csv"):
        data = own(path).data
        assert str(data.test).removeprefix("kaggle/") == "Test.csv"


def test_shards_of_the_hub_are_one_set() -> None:
    for number in range(3):
        part = slice(number * 20, number * 20 + 20)
        write(f"set/data/train-{number:05}-of-00003.parquet", {"text": TEXTS[part], "label": [1, 0] * 10})
    write("set/data/validation-00000-of-00001.parquet", {"text": TEXTS, "label": [1, 0] * 30})
    experiment = own("set")
    assert experiment.name == "set" and experiment.data.path == "set/data"
    assert experiment.data.test == "validation-00000-of-00001.parquet"
    assert own("set/data/train-00001-of-00003.parquet").data.test == "set/data/validation-00000-of-00001.parquet"
    Path("set/data/train-00002-of-00003.parquet").unlink()
    assert "1 of the 3 files of train are missing, the first is train-00002-of-00003.parquet" in refused("set")


def test_test_files_without_labels_are_passed_over() -> None:
    write("glue/train.csv", {"text": TEXTS, "label": [1, 0] * 30})
    write("glue/test.csv", {"text": TEXTS, "label": [-1] * 60})
    assert own("glue").data.test is None
    write("glue/dev.csv", {"text": TEXTS[:10], "label": [1, 0] * 5})
    assert own("glue").data.test == "dev.csv" and own("glue").task.label_names == ("0", "1")
    assert own("glue", "data.test=train.csv", "data.train=dev.csv").data.test == "train.csv"


@pytest.mark.parametrize(
    "names", [["validation.parquet"], ["validation-00000-of-00002.parquet", "validation-00001-of-00002.parquet"]]
)
def test_a_folder_with_one_split_of_any_name_holds_rows_out(names: list[str]) -> None:
    for name in names:
        write(f"qnli/{name}", {"text": TEXTS, "label": [1, 0] * 30})
    for path in ("qnli", f"qnli/{names[0]}"):
        experiment = own(path)
        assert experiment.name == "qnli" and experiment.data.test is None


def test_folders_of_splits_are_found() -> None:
    write("set/train/part.csv", {"text": TEXTS, "label": LABELS})
    write("set/test/part.csv", {"text": TEXTS[:10], "label": LABELS[:10]})
    data = own("set").data
    assert (data.path, data.train, data.test) == ("set", "train/part.csv", "test/part.csv")


def test_other_folders_are_a_question() -> None:
    reviews("two/one.csv")
    assert own("two").data.train == "one.csv" and own("two").name == "one"
    reviews("two/other.csv")
    assert "cannot tell which file has the training rows (one.csv, other.csv)" in refused("two")
    assert own("two", "data.train=one.csv", "data.test=other.csv").data.test == "other.csv"
    shutil.copytree("two", "outer/a")
    shutil.copytree("two", "outer/b")
    assert "several of its folders have (a, b)" in refused("outer")
    Path("none").mkdir()
    assert "has no .csv" in refused("none")
    assert "no such file or folder; did you mean two?" in refused("tow")


# --- the rest of the experiment


def test_name_and_sizes_come_from_the_data() -> None:
    experiment = own(reviews("My reviews.csv"))
    assert (experiment.name, experiment.task.name) == ("My reviews", "My reviews")
    assert (experiment.num_devices, experiment.cohort_size) == (4, 4)  # 48 training rows: 10 or more a device
    write("big.csv", {"text": TEXTS * 10, "label": LABELS * 10})
    assert (own("big.csv").num_devices, own("big.csv").cohort_size) == (20, 5)
    assert own("big.csv", "num_devices=7", "cohort_size=2", "name=x").name == "x"


def test_a_device_for_each_user() -> None:
    reviews(user=[f"u{i % 12}" for i in range(60)])
    experiment = own("reviews.csv", "partition.column=user")
    assert experiment.partition.kind == "by_column" and (experiment.num_devices, experiment.cohort_size) == (12, 5)
    assert own("reviews.csv", "partition.column=user", "num_devices=3").num_devices == 3
    quickstart = load_experiment(
        config_folder() / "quickstart.yaml", ["data.path=reviews.csv", "partition.column=user", "num_devices=12"]
    )
    assert quickstart.partition == experiment.partition
    assert "column: no such key" in refused("reviews.csv", "partition.column=user", "partition.kind=iid")
    assert "no column 'usr'; did you mean 'user'" in refused("reviews.csv", "partition.column=usr")


def test_paths_that_cannot_be_read_are_refused() -> None:
    assert "File name too long" in refused("a" * 300 + ".csv")
    os.mkfifo("pipe.csv")
    assert "pipe.csv: cannot be read (Not a directory)" in refused("pipe.csv")


def test_what_was_found_is_kept_and_not_looked_for_again() -> None:
    experiment = own(reviews())
    Path("reviews.csv").unlink()
    Path("saved.yaml").write_text(yaml.safe_dump(resolved(experiment)))
    assert load_experiment(Path("saved.yaml")) == experiment


def test_a_config_with_the_embedded_task_takes_own_files() -> None:
    experiment = load_experiment(
        config_folder() / "quickstart.yaml", [f"data.path={reviews()}", "data.label=sentiment"]
    )
    assert experiment.task.label_names == ("neg", "pos") and experiment.num_devices == 20
    with pytest.raises(DataError, match="data.path: has no effect"):
        named = load_experiment(config_folder() / "quickstart.yaml", ["data.path=reviews.csv", "task=synthetic"])
        named.task.effective(named.data)


def test_a_named_task_takes_own_files() -> None:
    write("a.csv", {"sentence": TEXTS, "label": ["positive", "negative"] * 30})
    assert own("a.csv", "task=sst2", "task.eval_split=null").name == "sst2"


def test_heads_of_language_models_ask_for_words() -> None:
    """The remedy works as it is written, once the words are filled in."""
    reviews()
    for head in ("backbone.head=masked_lm", "backbone=tiny-llama"):
        says = refused("reviews.csv", head)
        assert "needs a prompt and one word for each class of task reviews" in says
        remedy = shlex.split(re.findall(r"set ('task.*\])", says)[0].replace("word1,word2", "bad,good"))
        assert own("reviews.csv", head, *remedy).task.verbaliser == ("bad", "good")


def test_an_experiment_without_task_and_data_says_both_ways() -> None:
    with pytest.raises(ConfigError, match="task: is missing; set it to a task's name, or set data.path=FILE"):
        check({"name": "x", "rounds": 1, "num_devices": 2, "cohort_size": 1}, "here")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.encoding=utf-99", "data.encoding: 'utf-99' is not a text encoding"),
        ("data.encoding=zlib", "data.encoding: 'zlib' is not a text encoding"),
        ("data.delimiter=colon", "data.delimiter: input should be 'auto', 'comma'"),
        ("data={path: reviews.csv, text: a, text_columns: [b]}", "text and text_columns are the same setting"),
    ],
)
def test_bad_settings_are_one_line(override: str, says: str) -> None:
    assert says in refused(reviews(), override)


@pytest.mark.parametrize("folder", ["imdb", "imdb/train"])
def test_a_folder_per_class_becomes_a_table_as_the_page_says(folder: str) -> None:
    for at, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True)):
        file = Path(folder, label, f"{at}.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert "has a folder per class (neg, pos) and a file per text" in refused("imdb")
    page = (config_folder().parent / "docs" / "own-data.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(code.replace('"imdb"', repr(folder)), {})
    assert own("imdb.csv").task.label_names == ("neg", "pos")


def test_the_home_folder_may_be_written_with_a_tilde(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    reviews("set/data/train.csv")
    for path in ("~/set", "~/set/"):
        assert own(path).data.path == "~/set/data"
    assert own("~/set/data/train.csv").data.path == "~/set/data/train.csv"


def test_classes_that_differ_in_capital_letters_only_are_noted() -> None:
    experiment = own(write("a.csv", {"text": TEXTS, "label": ["Pos", "pos", "neg"] * 20}))
    train, test = load(experiment.task, experiment.data, 0)
    said = about_rows(experiment.task, experiment.data, train, test)
    assert "the classes 'Pos' and 'pos' differ only in capital letters or blanks" in "; ".join(said)


def test_json_is_never_asked_for_its_header() -> None:
    assert "data.header" not in refused(write("a.json", {"1": TEXTS, "2": TEXTS}))


@pytest.mark.parametrize("name", hostile_data.ALL)
@pytest.mark.parametrize("overrides", [[], ["data.drop_missing=true"], ["data.text=sentence", "data.label=label"]])
def test_malformed_files_are_read_or_refused_in_one_line(name: str, overrides: list[str]) -> None:
    suffix, content = hostile_data.ALL[name]
    Path(f"mine.{suffix}").write_bytes(content)
    try:
        experiment = own(f"mine.{suffix}", *overrides)
        load(experiment.task, experiment.data, 0)
    except UserError as error:
        assert "\n" not in str(error) and f"mine.{suffix}" in str(error) or "data.test_fraction" in str(error)


# --- answers other than classes


def test_fractions_and_lists_name_the_kind_that_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the remedy works."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f'{{"text": "film number {i}", "label": {i / 10}}}\n' for i in range(40))
    Path("scores.jsonl").write_text(rows)
    assert "scores and not classes; set task.kind=text_regression to predict them" in refused("scores.jsonl")
    task = own("scores.jsonl", "task.kind=text_regression").task
    assert (task.kind, task.score_range, task.text_columns) == ("text_regression", (0.0, 3.9), ("text",))

    names = ["[]", '["joy"]', '["joy", "fear"]', '["fear"]']
    Path("lists.jsonl").write_text("".join(f'{{"text": "film {i}", "labels": {names[i % 4]}}}\n' for i in range(40)))
    assert "every row has a list of labels; set task.kind=multi_label" in refused("lists.jsonl")
    task = own("lists.jsonl", "task.kind=multi_label").task
    assert (task.kind, task.label_names, task.label_column) == ("multi_label", ("fear", "joy"), "labels")


def test_the_range_of_scores_holds_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 is no float32. Rows without a score are left out if the user wants it."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"film number {i}", "label": 0.1 + i / 7} for i in range(40)]
    Path("scores.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = own("scores.jsonl", "task.kind=text_regression")
    train, test = load(found.task, found.data, seed=0)
    assert len(train) + len(test) == 40
    with Path("scores.jsonl").open("a") as file:
        file.write('{"text": "a film without a score", "label": null}\n')
    assert "no score in row 40; " in refused("scores.jsonl", "task.kind=text_regression")
    assert own("scores.jsonl", "task.kind=text_regression", "data.drop_missing=true").task == found.task
