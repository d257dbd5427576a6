"""Rows from files of every format, from the hub's library, and the generator; and every way in which that fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import yaml
from pydantic import ValidationError

from fibec_ray.data.settings import DataConfig
from fibec_ray.data.synthetic import SyntheticSettings
from fibec_ray.errors import DataError
from fibec_ray.tasks import Task, TextClassification, load, parse_task

TASKS = Path(__file__).parents[2] / "configs" / "tasks"
REAL = Path(__file__).parents[2].parent / "shared" / "data"
SINGLE = TextClassification(
    name="toy",
    label_names=("low", "mid", "high"),
    template="{a} <mask>",
    causal_template="{a}",
    verbaliser=("x", "y", "z"),
    eval_split="test",
)
PAIR = SINGLE.model_copy(
    update={"text_columns": ("s1", "s2"), "template": "{a} <mask> {b}", "causal_template": "{a} {b}"}
)
TEXTS = ['said "no", twice', "2004", "True", "naïve café "]
LABELS = [2, 0, 1, 2]


def task_of(name: str) -> Task:
    return parse_task(yaml.safe_load((TASKS / f"{name}.yaml").read_text()))


def write(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    elif path.suffix == ".tsv":
        lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")


def write_both(folder: Path, columns: dict[str, Any], suffix: str = ".parquet", **options: Any) -> DataConfig:
    for split in ("train", "test"):
        write(folder / f"{split}{suffix}", columns, **options)
    return DataConfig(path=str(folder))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("labels", [LABELS, ["high", "low", "mid", "high"]], ids=["ids", "names"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str, labels: list[Any]) -> None:
    config = write_both(tmp_path, {"sentence": TEXTS, "label": labels}, suffix)
    for examples in load(SINGLE, config, 0):
        assert examples.texts_a == TEXTS and examples.texts_b is None and examples.true_difficulty is None
        assert examples.labels.tolist() == LABELS and examples.labels.dtype == np.int64


def test_pairs_have_two_texts(tmp_path: Path) -> None:
    config = write_both(tmp_path, {"s1": ["a", "b"], "s2": ["c", "d"], "label": [0, 1]})
    assert load(PAIR, config, 0)[0].texts_b == ["c", "d"]


def test_train_splits_are_joined_in_order(tmp_path: Path) -> None:
    for split, text in (("train", "one"), ("validation", "two"), ("test", "three")):
        write(tmp_path / f"{split}.parquet", {"sentence": [text], "label": [0]})
    train, test = load(
        SINGLE.model_copy(update={"train_splits": ("train", "validation")}), DataConfig(path=str(tmp_path)), 0
    )
    assert (train.texts_a, test.texts_a) == (["one", "two"], ["three"])


def test_class_names_in_the_schema_decide_the_ids(tmp_path: Path) -> None:
    features = {"label": {"names": ["high", "low", "mid"], "_type": "ClassLabel"}}
    for metadata in (
        {"huggingface": json.dumps({"info": {"features": features}})},
        {"label_names": json.dumps(["high", "low", "mid"])},
    ):
        config = write_both(tmp_path, {"sentence": ["a", "b"], "label": [0, 2]}, metadata=metadata)
        assert load(SINGLE, config, 0)[0].labels.tolist() == [2, 1]  # high, mid


def test_aliases_dictionaries_and_flags_are_understood(tmp_path: Path) -> None:
    task = SINGLE.model_copy(update={"label_aliases": {"hi": "high"}})
    config = write_both(tmp_path, {"sentence": ["a", "b"], "label": pa.array(["hi", "low"]).dictionary_encode()})
    assert load(task, config, 0)[0].labels.tolist() == [2, 0]
    config = write_both(tmp_path, {"sentence": ["a", "b"], "label": [True, False]})
    assert load(task, config, 0)[0].labels.tolist() == [1, 0]


def test_columns_and_files_can_be_named(tmp_path: Path) -> None:
    write(tmp_path / "one.csv", {"body": ["a"], "y": [1]})
    write(tmp_path / "two.csv", {"body": ["b"], "y": [2]})
    names: dict[str, Any] = {"text_columns": ("body",), "label_column": "y"}
    for config in (
        DataConfig(path=str(tmp_path), train="one.csv", test="two.csv", **names),
        DataConfig(path=str(tmp_path / "one.csv"), test=str(tmp_path / "two.csv"), **names),
        DataConfig(train=str(tmp_path / "one.csv"), test=str(tmp_path / "two.csv"), **names),
        DataConfig(path=str(tmp_path), train_splits=("one",), eval_split="two", format="csv", **names),
    ):
        train, test = load(SINGLE, config, 0)
        assert (train.texts_a, test.texts_a, test.labels.tolist()) == (["a"], ["b"], [2])


def test_limits_give_a_seeded_subset_in_order(tmp_path: Path) -> None:
    config = write_both(tmp_path, {"sentence": [f"{i:03}" for i in range(100)], "label": [0] * 100})
    limited = config.model_copy(update={"max_train": 10, "max_test": 1000})
    (one, test), (two, _), (other, _) = load(SINGLE, limited, 0), load(SINGLE, limited, 0), load(SINGLE, limited, 1)
    assert one.texts_a == two.texts_a == sorted(one.texts_a) != other.texts_a
    assert (len(one), len(test)) == (10, 100)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"text": ["a"], "label": [0]}, "no column 'sentence'; it has text, label; allowed: label, text"),
        ({"sentence": ["a"], "labels": [0]}, "no column 'label'; it has sentence, labels; did you mean 'labels'"),
        ({"sentence": ["a", "b"], "label": [0, 3]}, "label 3 in row 1; allowed: 0 to 2"),
        ({"sentence": ["a", "b"], "label": [-1, 2]}, "label -1 in row 0"),
        ({"sentence": ["a", "b"], "label": [-1, -1]}, "unlabelled"),
        ({"sentence": ["a", "b"], "label": [0, None]}, "no label in row 1"),
        ({"sentence": ["a"], "label": pa.array([None], pa.null())}, "no label in row 0"),
        ({"sentence": ["a"], "label": [0.5]}, "labels of type double such as 0.5"),
        ({"sentence": ["a"], "label": ["hihg"]}, "class 'hihg' is unknown to task toy; did you mean 'high'"),
        ({"sentence": ["a", None], "label": [0, 1]}, "no text in row 1"),
        ({"sentence": ["", "  "], "label": [0, 1]}, "empty in all of 2 rows"),
        ({"sentence": [1, 2], "label": [0, 1]}, "of type int64, not text"),
        ({"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "no rows"),
    ],
)
def test_bad_contents_are_one_line_with_file_and_column(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    config = write_both(tmp_path, columns)
    with pytest.raises(DataError, match=says) as caught:
        load(SINGLE, config, 0)
    assert "train.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_class_unknown_to_the_task_in_the_schema_is_refused(tmp_path: Path) -> None:
    config = write_both(tmp_path, {"sentence": ["a"], "label": [1]}, metadata={"label_names": '["low", "hgih"]'})
    with pytest.raises(DataError, match="class 'hgih' is unknown"):
        load(SINGLE, config, 0)


def test_truncated_parquet_is_refused(tmp_path: Path) -> None:
    config = write_both(tmp_path, {"sentence": ["a"] * 50, "label": [0] * 50})
    whole = (tmp_path / "train.parquet").read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / "train.parquet").write_bytes(whole[:cut])
        with pytest.raises(DataError, match="train.parquet: cannot be read as parquet"):
            load(SINGLE, config, 0)


def test_damaged_pages_or_bytes_are_refused(tmp_path: Path) -> None:
    config = write_both(tmp_path, {"sentence": pa.array([b"\xff\xfe"]).cast(pa.string(), safe=False), "label": [0]})
    with pytest.raises(DataError, match="not UTF-8"):
        load(SINGLE, config, 0)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train.jsonl", '{"sentence": "a", "label": 0}\n{"sentence": \n', "line 2"),
        ("train.jsonl", "[1, 2]\n", "line 1: list where an object"),
        ("train.jsonl", "", "no rows"),
        ("train.csv", "sentence,label\na,0,7\n", "cannot be read as csv"),
        ("train.csv", "", "cannot be read as csv"),
        ("train.csv", "sentence,label\n", "no rows"),
    ],
)
def test_broken_text_files_are_refused(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "other.csv").write_text("sentence,label\na,0\n")
    with pytest.raises(DataError, match=says):
        load(SINGLE, DataConfig(path=str(tmp_path), train=name, test="other.csv"), 0)


def test_one_file_cannot_be_both_train_and_test(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", {"sentence": ["a"], "label": [0]})
    with pytest.raises(DataError, match="a.csv is also trained on"):
        load(SINGLE, DataConfig(path=str(tmp_path / "a.csv"), test=str(tmp_path / "a.csv")), 0)


def test_missing_files_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load(SINGLE, DataConfig(path=str(tmp_path / "none")), 0)
    write(tmp_path / "test.parquet", {"sentence": ["a"], "label": [0]})
    with pytest.raises(DataError, match=r"no file train\{.parquet,.*the folder holds test.parquet"):
        load(SINGLE, DataConfig(path=str(tmp_path)), 0)
    with pytest.raises(DataError, match="a.parquet: no such file; set data.path"):
        load(SINGLE, DataConfig(path=str(tmp_path), train="a.parquet"), 0)
    with pytest.raises(DataError, match="is one file; name the test rows with data.test"):
        load(SINGLE, DataConfig(path=str(tmp_path / "test.parquet")), 0)
    with pytest.raises(DataError, match="data.test: not set"):
        load(SINGLE, DataConfig(train="a.csv"), 0)
    (tmp_path / "a.xml").write_text("")
    with pytest.raises(DataError, match="unknown suffix '.xml'"):
        load(SINGLE, DataConfig(path=str(tmp_path), train="a.xml"), 0)


@pytest.mark.parametrize(
    ("task", "config", "says"),
    [
        ("synthetic", {"path": "x"}, "data.path: has no effect"),
        ("synthetic", {"format": "csv"}, "data.format: has no effect"),
        ("synthetic", {"label_column": "y"}, "data.label_column: has no effect"),
        ("trec", {"path": ".", "synthetic": SyntheticSettings(num_train=10)}, "data.synthetic: has no effect"),
        ("trec", {"format": "csv"}, "data.format: has no effect"),
        ("trec", {"path": ".", "train": "a", "train_splits": ("b",)}, "data.train_splits: has no effect"),
        ("trec", {"path": ".", "test": "a", "eval_split": "b"}, "data.eval_split: has no effect"),
        ("trec", {"path": __file__, "train": "a", "test": "b"}, "data.train: has no effect"),
        ("trec", {"path": ".", "text_columns": ("a", "b")}, "data.text_columns: .* needs 1"),
        ("trec", {"path": ".", "eval_split": "train"}, "'train' is also trained on"),
        (
            "trec",
            {"path": ".", "label_column": "sentence"},
            "'sentence' is a text column too, .* data.text and data.label",
        ),
        ("trec", {"path": ".", "revision": "v1"}, "data.revision: has no effect, because the rows come from files"),
        ("synthetic", {"revision": "v1"}, "data.revision: has no effect"),
        ("synthetic", {"labels": "ids"}, "data.labels: has no effect"),
    ],
)
def test_setting_without_effect_is_refused(task: str, config: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        load(task_of(task), DataConfig(**config), 0)


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError):
        DataConfig.model_validate({"paht": "x"})


def test_task_without_hub_asks_for_a_path() -> None:
    with pytest.raises(DataError, match="set data.path=FOLDER"):
        load(SINGLE, DataConfig(), 0)


def test_hub_that_cannot_be_reached_points_at_local_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="hub SetFit/TREC-QC, split 'train': cannot be loaded .* set data.path=FOLDER"):
        load(task_of("trec"), DataConfig(), 0)


def test_hub_layout_and_class_names_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"  # `datasets` opens a folder by the same call as a hub name
    folder.mkdir()
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["high", "low", "mid"], "_type": "ClassLabel"},
    }
    columns = {"text": ["a", "b"], "label": [0, 2]}
    write_both(folder, columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    task = SINGLE.model_copy(update={"hub": str(folder)})
    with pytest.raises(DataError, match="no column 'sentence'; it has text, label"):
        load(task, DataConfig(), 0)
    train, test = load(task, DataConfig(text_columns=("text",)), 0)
    assert train.texts_a == test.texts_a == ["a", "b"] and train.labels.tolist() == [2, 1]


def test_a_revision_of_the_hub_is_asked_for_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` is called with; it finds no such revision."""
    import datasets

    asked = []

    def load_dataset(*args: Any, **options: Any) -> None:
        asked.append(options)
        raise FileNotFoundError("no such revision")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="hub SetFit/TREC-QC at 1a2b, split 'train': cannot be loaded"):
        load(task_of("trec"), DataConfig(revision="1a2b"), 0)
    assert asked == [{"split": "train", "revision": "1a2b"}]


def test_hub_differences_hold_for_the_hub_only() -> None:
    assert task_of("trec").effective(DataConfig()).train_splits == ("train",)
    assert task_of("trec").effective(DataConfig(path=".")).train_splits == ("train", "validation")


def test_embedded_task_needs_no_file() -> None:
    settings = SyntheticSettings(num_train=30, num_test=12, num_classes=3)
    train, test = load(task_of("synthetic"), DataConfig(synthetic=settings), 0)
    assert (len(train), len(test), train.true_difficulty is not None) == (30, 12, True)
    assert task_of("synthetic").effective(DataConfig(synthetic=settings)).num_classes == 3
    train, _ = load(task_of("synthetic"), DataConfig(synthetic=settings, max_train=7), 0)
    assert train.true_difficulty is not None and len(train) == len(train.true_difficulty) == 7


PUBLISHED = {"cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "rte": (2490, 277), "trec": (5452, 500)}


@pytest.mark.parametrize("name", [*PUBLISHED, "mr"])
def test_real_sets_have_their_published_sizes(name: str) -> None:
    if not (REAL / name).is_dir():
        pytest.skip("the real data sets are not beside the repository (../shared/data)")
    task = task_of(name)
    train, test = load(task, DataConfig(path=str(REAL / name)), 0)
    assert (len(train), len(test)) == PUBLISHED.get(name, (8529 + 1066, 1067))
    assert set(train.labels.tolist()) == set(range(task.num_classes))


@pytest.mark.parametrize("name", ["qnli", "boolq"])
def test_sets_without_training_rows_say_so(name: str) -> None:
    if not (REAL / name).is_dir():
        pytest.skip("the real data sets are not beside the repository (../shared/data)")
    with pytest.raises(DataError, match="no file train.*the folder holds dataset_info.json, validation.parquet"):
        load(task_of(name), DataConfig(path=str(REAL / name)), 0)
    train, _ = load(task_of(name), DataConfig(path=str(REAL / "extra" / f"{name}_devsplit")), 0)
    assert train.texts_b is not None
