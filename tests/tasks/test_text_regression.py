"""Scores of texts: how they are read, scaled, dealt and scored."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from conftest import make_tiny
from kinds import make_similar

import fibec_ray
from fibec_ray.config.load import check
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.similar import SimilarSettings, generate
from fibec_ray.errors import ConfigError, DataError
from fibec_ray.runs.simulation import simulate
from fibec_ray.tasks import load, parse_task
from fibec_ray.types import Predictions

STS = {"name": "sts", "kind": "text_regression", "text_columns": ("a", "b"), "score_range": (0, 5), "eval_split": None}


def task(**changes: Any) -> Any:
    return parse_task(STS | changes)


def file_of(path: Path, scores: Any, count: int = 20) -> DataConfig:
    columns = {"a": [f"text {i}" for i in range(count)], "b": [f"other {i}" for i in range(count)], "label": scores}
    pyarrow.parquet.write_table(pa.table(columns), path)
    return DataConfig(path=str(path))


def test_rows_are_dealt_by_fifths_of_the_training_scores(tmp_path: Path) -> None:
    train, test = load(task(), file_of(tmp_path / "t.parquet", [i / 4 for i in range(20)]), seed=0)
    assert (len(train), len(test), train.texts_b is not None) == (16, 4, True)
    assert task().num_groups(train) == 5 and np.bincount(train.labels, minlength=5).max() <= 4
    order = np.argsort(train.targets)
    assert (np.diff(train.labels[order]) >= 0).all()  # a higher score is never in a lower fifth


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([0.5] * 19 + [7.0], r"the score 7 in row 19 is outside of task.score_range \[0, 5\]; set 'task.score_range="),
        ([0.5] * 19 + [None], "no score in row 19; fill it in"),
        ([0.5] * 19 + [float("nan")], "no score in row 19; fill it in"),
        ([0.5] * 19 + [float("inf")], "the score inf in row 19; allowed: "),
        ([datetime(2024, 1, 1)] * 20, "the values are not all numbers"),
        (["1.5"] * 19 + ["x"], r"the values are not all numbers \('x' in row 19\); correct them"),
        ([" 1.5"] * 19 + [" "], "no score in row 19; fill it in, set data.drop_missing=true"),
        ([[1.0]] * 20, "of type list<.*, not numbers"),
    ],
)
def test_a_value_that_is_no_score_is_one_error(scores: list[Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        load(task(), file_of(tmp_path / "t.parquet", scores), seed=0)
    assert "t.parquet, column 'label'" in str(caught.value) and "\n" not in str(caught.value)


def test_errors_name_the_row_of_the_file_where_others_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "classes.parquet"
    pyarrow.parquet.write_table(pa.table({"sentence": ["a", None, "b", "c"], "label": ["no", "no", "yes", "so"]}), path)
    classes = parse_task({"name": "classes", "label_names": ["no", "yes"], "eval_split": None})
    with pytest.raises(DataError, match="class 'so' is unknown .*in row 3"):
        load(classes, DataConfig(path=str(path), drop_missing=True), seed=0)
    config = file_of(tmp_path / "t.parquet", [None, *[0.5] * 18, 7.0])
    with pytest.raises(DataError, match="the score 7 in row 19 "):
        load(task(), config.model_copy(update={"drop_missing": True}), seed=0)


@pytest.mark.parametrize("scores", [[0.5] * 19 + [7.123456789], [7.1] * 20, [-1 / 3] * 10 + [1e9 / 3] * 10])
def test_the_remedy_of_a_range_works(scores: list[float], tmp_path: Path) -> None:
    config = file_of(tmp_path / "t.parquet", scores)
    with pytest.raises(DataError) as caught:
        load(task(), config, seed=0)
    remedy = re.search(r"task.score_range=(\[.*\])'", str(caught.value))
    assert remedy is not None
    train, _ = load(task(score_range=json.loads(remedy[1])), config, seed=0)
    assert len(train) == 16


def test_correlations_by_hand() -> None:
    """Values in [-1, 1] stand for 0 to 5: an error of 0.4 there is one of 1.0 here."""
    found = task().figures(Predictions(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-0.6, 0.0, 1.0]), torch.zeros(3)))
    assert found.metric == pytest.approx(np.corrcoef([-1, 0, 1], [-0.6, 0, 1])[0, 1])
    assert found.more == {"spearman": pytest.approx(1.0), "rmse": pytest.approx((1.0**2 / 3) ** 0.5)}
    same = Predictions(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), torch.zeros(2))
    assert task().figures(same).metric is None and task().figures(same).more.keys() == {"rmse"}


def test_embedded_scores_are_what_they_say() -> None:
    rows = generate(300, 0, "test", SimilarSettings())
    assert rows.texts_b is not None and rows.targets is not None and rows.true_difficulty is not None
    assert set(rows.targets.tolist()) == {0.0, 1.0, 3.0, 4.0, 5.0}
    assert np.bincount(rows.labels).min() > 0 and rows.labels.max() == 4  # each score is a group
    again = generate(300, 0, "test", SimilarSettings())
    assert again.texts_a == rows.texts_a and np.array_equal(again.targets, rows.targets)
    train = generate(300, 0, "train", SimilarSettings())
    assert not set(train.texts_a) & set(rows.texts_a)


def test_a_model_predicts_in_the_units_of_the_scores(tmp_path: Path) -> None:
    run = simulate(check(make_similar(rounds=1), "test"), tmp_path / "run")
    model = fibec_ray.load(run.folder)
    pairs = [("Will it rain?", "Is it cold?"), ("a", "b")]
    values = [prediction.value for prediction in model.predict(pairs)]
    assert values == pytest.approx((model.scores(pairs)[:, 0] * 2.5 + 2.5).tolist())
    with pytest.raises(DataError, match="input 0: task similar takes a pair of texts"):
        model.predict(["one"])
    with pytest.raises(DataError, match="inputs: give a list or an array with one entry per sample; this is 3.5"):
        model.predict(3.5)
    with pytest.raises(ConfigError, match="device '0': the run has devices 0 to 5"):
        fibec_ray.load(run.folder, device="0")  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["masked_lm", "causal_lm"])
def test_heads_that_answer_with_words_are_refused(head: str) -> None:
    settings = make_tiny(backbone={"head": head}) | {"task": {"name": "similar", "kind": "similar_texts"}}
    with pytest.raises(ConfigError, match="needs one score for each text; .* set backbone.head=mean_pool"):
        check(settings | {"data": {"max_length": 16}}, "test")


def test_the_architectures_own_head_works(tmp_path: Path) -> None:
    run = simulate(check(make_similar(rounds=1, backbone={"head": "model"}), "test"), tmp_path / "run")
    assert run.rows[-1]["global_metrics"] is not None
