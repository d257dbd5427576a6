"""Any number of labels for a text: how they are read, dealt and scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from conftest import make_tiny
from kinds import make_mentions

import fibec_ray
from fibec_ray.config.load import check
from fibec_ray.data.dealing import Split
from fibec_ray.data.mentions import MentionSettings, generate
from fibec_ray.data.settings import DataConfig
from fibec_ray.errors import ConfigError, DataError
from fibec_ray.runs.simulation import simulate
from fibec_ray.tasks import load, parse_task
from fibec_ray.types import Predictions

NAMES = ("joy", "anger", "fear")
FLAGS = [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]]


def task(**changes: Any) -> Any:
    settings = {"name": "emotions", "kind": "multi_label", "label_names": NAMES, "text_columns": ("text",)}
    return parse_task(settings | {"eval_split": "test", **changes})


def read(folder: Path, labels: Any, metadata: dict[str, str] | None = None, suffix: str = "parquet") -> Any:
    table = pa.table({"text": [f"text {i}" for i in range(len(labels))], "labels": labels})
    for split in ("train", "test"):
        path = folder / f"{split}.{suffix}"
        if suffix == "csv":
            rows = [f'text {i},"{label}"' for i, label in enumerate(labels)]
            path.write_text("text,labels\n" + "\n".join(rows) + "\n")
        else:
            pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
    return load(task(), DataConfig(path=str(folder)), seed=0)


@pytest.mark.parametrize(
    ("labels", "suffix"),
    [
        ([["joy"], ["joy", "anger"], [], ["fear"], ["joy"], ["joy"]], "parquet"),
        ([[0], [0, 1], [], [2], [0], [0]], "parquet"),
        (["joy", "joy, anger", "", "fear", "joy", "joy"], "csv"),
        (["0", "0;1", "", "2", "0", "0"], "csv"),
        (["joy", "anger|joy", None, "fear", "joy", "joy"], "parquet"),
        ([["joy"], ["joy", "anger"], [""], ["fear", None], ["joy"], ["joy"]], "parquet"),
        ([[0.0], [0.0, 1.0], [], [2.0, float("nan")], [0.0], [0.0]], "parquet"),
    ],
)
def test_labels_are_read_however_they_are_written(labels: Any, suffix: str, tmp_path: Path) -> None:
    train, _ = read(tmp_path, labels, suffix=suffix)
    assert train.targets.tolist() == FLAGS


def test_ids_are_positions_among_the_files_own_names(tmp_path: Path) -> None:
    features = {"labels": {"feature": {"names": ["fear", "joy", "anger"], "_type": "ClassLabel"}, "_type": "List"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    train, _ = read(tmp_path, [[1], [1, 2], [], [0], [1], [1]], metadata)
    assert train.targets.tolist() == FLAGS


def test_rows_are_dealt_by_their_rarest_label(tmp_path: Path) -> None:
    """joy is on four training texts, anger and fear on one each; a text without labels is a group of its own."""
    train, _ = read(tmp_path, [["joy"], ["joy", "anger"], [], ["fear"], ["joy"], ["joy"]])
    assert task().num_groups(train) == 4
    assert train.labels.tolist() == [0, 1, 3, 2, 0, 0]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([["joy"], ["jyo"]], "column 'labels', row 1: label 'jyo' is unknown to the task; did you mean 'joy'"),
        ([[0], [3]], "row 1: label '3' is unknown"),
        ([[0], [-1]], "row 1: label '-1' is unknown"),
    ],
)
def test_an_unknown_label_is_one_error(labels: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        read(tmp_path, labels)


def test_scores_by_hand() -> None:
    """Of 2 texts and 3 labels: 2 right labels, 1 too many, 1 missed. micro F1 = 4 / 6. One text is right in all."""
    true, found = torch.tensor([[1, 1, 0], [0, 1, 0]]), torch.tensor([[1, 0, 1], [0, 1, 0]])
    predictions = Predictions(true, found, torch.zeros(2))
    scores = task().score(predictions)
    assert scores is not None and scores.accuracy == 0.5
    assert scores.metric == pytest.approx(4 / 6)
    assert dict(scores.metrics or ()) == {"f1_macro": pytest.approx((1 + 2 / 3 + 0) / 3)}


def test_baselines_are_in_both_scores(tmp_path: Path) -> None:
    """Always {joy}: exact for 3 of 6 texts, 4 of 6 labels found by 6. With {fear} for device 1: 4 texts, 5 labels."""
    rows = read(tmp_path, [["joy"], ["joy", "anger"], [], ["fear"], ["joy"], ["joy"]])[1]
    split = Split([np.array([0, 1, 2, 4, 5]), np.array([3])], [np.array([0, 1, 4, 5]), np.array([2, 3])])
    assert task().anchors(rows, rows, split) == pytest.approx(
        {"majority": 3 / 6, "own_majority": 4 / 6, "majority_metric": 4 / 6, "own_majority_metric": 5 / 6}
    )


def test_embedded_messages_name_their_topics() -> None:
    rows = generate(400, 0, "train", MentionSettings())
    assert rows.targets is not None and rows.targets.shape == (400, 6)
    assert np.bincount(rows.targets.sum(1).astype(int)).tolist()[0] > 20 and rows.targets.sum(1).max() == 3
    again = generate(400, 0, "train", MentionSettings())
    assert rows.texts_a == again.texts_a
    assert not set(rows.texts_a) & set(generate(400, 0, "test", MentionSettings()).texts_a)


def test_a_model_names_every_likely_label(tmp_path: Path) -> None:
    run = simulate(check(make_mentions(rounds=1), "test"), tmp_path / "run")
    model = fibec_ray.load(run.folder)
    (one,) = model.predict(["Will it rain in Lyon tomorrow?"])
    assert len(one.scores) == 6 and one.labels == tuple(name for name, p in one.scores.items() if p > 0.5)


def test_heads_that_answer_with_words_are_refused() -> None:
    settings = make_tiny(backbone={"head": "masked_lm"}) | {"task": {"name": "mentions", "kind": "mentions"}}
    with pytest.raises(ConfigError, match="needs a score for each label; .* set backbone.head=mean_pool"):
        check(settings | {"data": {"max_length": 16}}, "test")


def test_rows_without_a_text_can_be_left_out(tmp_path: Path) -> None:
    """A row without labels stays: it is an answer."""
    path = tmp_path / "rows.parquet"
    labels = [["joy"], ["fear"], [], None, ["joy"]]
    pyarrow.parquet.write_table(pa.table({"text": ["a", None, "b", "c", " "], "labels": labels}), path)
    rows = task(eval_split=None)
    with pytest.raises(DataError, match="no text in row 1; .*data.drop_missing=true"):
        load(rows, DataConfig(path=str(path)), seed=0)
    train, test = load(rows, DataConfig(path=str(path), drop_missing=True), seed=0)
    assert sorted(train.texts_a + test.texts_a) == ["a", "b", "c"]
    with pytest.raises(DataError, match="row 4: label 'joi' is unknown"):
        pyarrow.parquet.write_table(
            pa.table({"text": ["a", None, "b", "c", "d"], "labels": [[], [], [], [], ["joi"]]}), path
        )
        load(rows, DataConfig(path=str(path), drop_missing=True), seed=0)


def test_f1_of_one_label_is_not_its_accuracy() -> None:
    """By hand: of 2 texts with the label one is found, and one text has it wrongly."""
    found = torch.tensor([[1], [0], [1], [0], [0]])
    true = torch.tensor([[1], [1], [0], [0], [0]])
    figures = task(label_names=("joy",)).figures(Predictions(true, found, torch.zeros(5)))
    assert figures == (0.5, {"f1_macro": 0.5})
