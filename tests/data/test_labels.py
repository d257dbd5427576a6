"""Labels as names and as ids, in every type of column: which class each of them is, and what is refused."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from fibec_ray.data.settings import DataConfig
from fibec_ray.errors import DataError
from fibec_ray.tasks import FromInstructions, load
from fibec_ray.tasks import TextClassification as Task

WORDS = ("one", "two", "three", "four")


def task_of(*names: str, **aliases: str) -> Task:
    return Task(
        name="rated",
        label_names=names,
        label_aliases=aliases,
        template="{a} <mask>",
        causal_template="{a}",
        verbaliser=WORDS[: len(names)],
        eval_split="test",
    )


def write(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        between = "," if path.suffix == ".csv" else "\t"
        rows = [between.join(columns), *(between.join(map(str, row.values())) for row in table.to_pylist())]
        path.write_text("\n".join(rows) + "\n")


def read(folder: Path, task: Task, column: Any, test: Any = None, suffix: str = ".parquet", **more: Any) -> list[int]:
    """The classes of the training rows. test: labels of the test rows, None: the same."""
    metadata = more.pop("metadata", None)
    for split, labels in (("train", column), ("test", column if test is None else test)):
        texts = [f"text {i}" for i in range(len(labels))]
        write(folder / f"{split}{suffix}", {"sentence": texts, "label": labels}, metadata)
    files = {"train": f"train{suffix}", "test": f"test{suffix}"}
    train, _ = load(task, DataConfig(path=str(folder), **files, **more), 0)
    return [int(label) for label in train.labels]


STARS = task_of("1", "2", "3", "4")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_text_that_is_a_name_is_the_name(tmp_path: Path, suffix: str) -> None:
    assert read(tmp_path, STARS, ["3", "1", "2"], suffix=suffix) == [2, 0, 1]
    assert read(tmp_path, STARS, ["4", "1"], suffix=suffix) == [3, 0]
    assert read(tmp_path, STARS, [" 4", "1.0"], suffix=suffix) == [3, 0]


@pytest.mark.parametrize(
    "column",
    [
        [4, 1, 2],
        [4.0, 1.0, 2.0],
        pa.array([4, 1, 2], pa.int8()),
        pa.array([4, 1, 2], pa.uint64()),
        pa.array([4, 1, 2], pa.float32()),
        pa.array([Decimal(4), Decimal(1), Decimal(2)]),
        pa.array([4, 1, 2]).dictionary_encode(),
        pa.array(["4", "1", "2"]).dictionary_encode(),
        pa.array(["4", "1", "2"], pa.large_string()),
    ],
)
def test_numbers_are_names_in_every_type_of_column(tmp_path: Path, column: Any) -> None:
    assert read(tmp_path, STARS, column) == [3, 0, 1]


def test_numbers_that_are_not_all_names_are_ids(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert read(tmp_path, STARS, [0, 3, 1], suffix=suffix) == [0, 3, 1]
    assert read(tmp_path, task_of("low", "high"), ["1.0", "0.0"], suffix=".csv") == [1, 0]


def test_all_files_of_a_run_are_read_in_the_same_way(tmp_path: Path) -> None:
    """Ids 1 to 3 could be names, but the test rows have a 0, which is none."""
    for suffix in (".csv", ".parquet"):
        assert read(tmp_path, STARS, [1, 3], test=[0, 2], suffix=suffix) == [1, 3]
        assert read(tmp_path, STARS, [1, 3], test=[4, 2], suffix=suffix) == [0, 2]


@pytest.mark.parametrize("column", [[1, 2, 3], [1.0, 2.0, 3.0], pa.array([1, 2, 3]).dictionary_encode()])
def test_numbers_that_can_be_both_are_refused_until_the_user_says_which(tmp_path: Path, column: Any) -> None:
    with pytest.raises(
        DataError, match="the label 1.* may be the name of class '1', or the id of class '2'; set data."
    ):
        read(tmp_path, STARS, column)
    for reading, classes in (("names", [0, 1, 2]), ("ids", [1, 2, 3])):
        config = DataConfig(path=str(tmp_path), labels=reading)
        assert load(STARS, config, 0)[0].labels.tolist() == classes


def test_numbers_that_are_the_same_class_in_both_readings_are_not_refused(tmp_path: Path) -> None:
    assert read(tmp_path, task_of("0", "1", "2"), [2, 0, 1]) == [2, 0, 1]


def test_names_may_be_numbers_that_no_id_is(tmp_path: Path) -> None:
    assert read(tmp_path, task_of("-1", "0", "1"), [-1, 1, 0]) == [0, 2, 1]
    assert read(tmp_path, task_of("-1", "0", "1"), ["-1", "-1"], suffix=".csv") == [0, 0]
    assert read(tmp_path, task_of("0.5", "1.5"), pa.array([1.5, 0.5], pa.float32())) == [1, 0]
    assert read(tmp_path, task_of("01", "02", "10"), [10, 2]) == [2, 1]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_aliases_that_are_digits_are_followed(tmp_path: Path, suffix: str) -> None:
    task = task_of("negative", "positive", **{"0": "positive", "4": "negative"})
    assert read(tmp_path, task, [4, 0, 4], suffix=suffix) == [0, 1, 0]
    swapped = task_of("negative", "positive", **{"0": "positive", "1": "negative"})
    assert read(tmp_path, swapped, [1, 0, 0], suffix=suffix) == [0, 1, 1]


def test_flags_are_classes_of_that_name(tmp_path: Path) -> None:
    flags = [True, False, True]
    assert read(tmp_path, task_of("True", "False"), flags) == [0, 1, 0]
    assert read(tmp_path, task_of("true", "false"), flags, suffix=".jsonl") == [0, 1, 0]
    assert read(tmp_path, task_of("True", "False"), ["False", "True"], suffix=".csv") == [1, 0]
    assert read(tmp_path, task_of("no", "yes"), flags) == [1, 0, 1]
    with pytest.raises(DataError, match="the label True may be the name of class '1', or the id of class '0'"):
        read(tmp_path, task_of("1", "0"), [True, True])


def test_a_files_own_class_names_say_what_its_numbers_are(tmp_path: Path) -> None:
    def metadata(*names: str) -> dict[str, str]:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        return {"huggingface": json.dumps({"info": {"features": features}})}

    assert read(tmp_path, STARS, [1, 2, 3], metadata=metadata("4", "3", "2", "1")) == [2, 1, 0]
    task = task_of("bad", "good", **{"1 star": "bad", "5 stars": "good"})
    assert read(tmp_path, task, [1, 0], metadata=metadata("5 stars", "1 star")) == [0, 1]
    with pytest.raises(DataError, match="class '5' is unknown to task rated"):
        read(tmp_path, STARS, [0, 0], metadata=metadata("5"))


@pytest.mark.parametrize(
    ("labels", "reading", "says"),
    [
        (["1", "7"], "auto", "label 7 in row 1 is neither a name nor an id; allowed: 0 to 3"),
        ([1, 7], "auto", "label 7 in row 1 is neither a name nor an id"),
        (["1", "0"], "names", "class '0' is unknown to task rated; .*in row 1"),
        (["1", "x"], "auto", "class 'x' is unknown to task rated"),
        (["1", "x"], "ids", "label 'x' in row 1 is not a whole number; set data.labels to names or auto"),
        ([1, 4], "ids", "label 4 in row 1"),
        (["9" * 4000], "auto", "class '9{80}...' is unknown"),
        ([1.5], "auto", "labels of type double such as 1.5"),
        ([0.0, 1.5], "auto", "labels of type double such as 1.5"),
        ([0.0, float("inf")], "auto", "labels of type double such as inf"),
        ([1.0, float("nan")], "auto", "no label in row 1; fill it in"),
    ],
)
def test_what_is_no_class_is_refused_with_its_row(tmp_path: Path, labels: list[Any], reading: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read(tmp_path, STARS, labels, labels=reading)
    assert "train.parquet, column 'label'" in str(caught.value)


def test_the_reading_is_refused_where_there_are_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"instruction": ["a", "b"], "response": ["c", "d"]})
    told = FromInstructions(name="told", eval_split=None)
    with pytest.raises(DataError, match="data.labels: has no effect"):
        load(told, DataConfig(path=str(tmp_path), labels="ids"), 0)
