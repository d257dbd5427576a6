"""Tags of words: scores against seqeval, joined predictions, gradients of single samples, and a run's model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_BERT, make_tagging
from torch import Tensor
from torch.nn import functional as F

import fibec_ray
from fibec_ray.answers import Answers
from fibec_ray.config.load import check
from fibec_ray.curvature.fisher import FisherScan, batch_squares
from fibec_ray.data.dealing import Split
from fibec_ray.data.encode_tagged import encode_tagged
from fibec_ray.data.encoded import ArrayShard
from fibec_ray.data.tagged import Tagged
from fibec_ray.errors import ConfigError, DataError, ModelError
from fibec_ray.learning.evaluation import at_rows
from fibec_ray.learning.lanes import Lanes
from fibec_ray.likelihoods import NO_TAG, Label, Tags
from fibec_ray.models.backbone import load_tokenizer, prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.runs.simulation import simulate
from fibec_ray.tasks import parse_task
from fibec_ray.types import Predictions

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
ROWS = Tagged(
    [["Lovelace", "saw", "Paris"], ["rain"], ["in", "New", "York", "today", "and", "tomorrow"]],
    [[1, 0, 3], [0], [0, 3, 4, 0, 0, 0]],
    np.array([0, 2, 1]),
)
ALL = torch.arange(3)


def task(**changes: Any) -> Any:
    return parse_task({"name": "ner", "kind": "token_labels", "label_names": NAMES, **changes})


def shard() -> ArrayShard:
    return encode_tagged(ROWS, load_tokenizer(Backbone()), "ner", 32).shard(np.arange(3))


def model() -> TorchModel:
    backbone = Backbone(init="random", config=TINY_BERT, tokenizer="minilm")
    answers = Answers(likelihood="tags", num_scores=5, readout="token")
    folder = prepare(backbone, 0, 5, Path(os.environ["FIBEC_RAY_CACHE"]))
    made = TorchModel(ModelSpec(backbone, Lora(r=4, alpha=8), answers, 0), folder)
    made.train(False)
    rng = torch.Generator().manual_seed(1)
    made.load({n: 0.1 * torch.randn(p.shape, generator=rng) for n, p in made.trainable.items() if "lora_B" in n})
    return made


def predictions(true: list[list[int]], predicted: list[list[int]]) -> Predictions:
    longest = max(map(len, true))
    labels, found = (
        torch.tensor([[*row, *[NO_TAG] * (longest - len(row))] for row in rows]) for rows in (true, predicted)
    )
    return Predictions(labels, found, torch.zeros(len(true)), torch.tensor([len(row) for row in true]))


def test_scores_are_those_of_seqeval() -> None:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    rng = np.random.default_rng(0)
    true = [rng.integers(0, 5, size).tolist() for size in (9, 1, 4, 12, 7)]
    predicted = [[tag if rng.random() < 0.6 else int(rng.integers(0, 5)) for tag in row] for row in true]
    named = [[[NAMES[tag] for tag in row] for row in rows] for rows in (true, predicted)]
    scores = task().score(predictions(true, predicted))
    assert scores.metric == pytest.approx(f1_score(*named)) and 0 < scores.metric < 1
    assert dict(scores.metrics) == pytest.approx({"precision": precision_score(*named), "recall": recall_score(*named)})
    assert scores.accuracy == pytest.approx(accuracy_score(*named)) and scores.perplexity is None


def test_scores_where_nothing_is_found() -> None:
    assert task().score(predictions([[1, 2]], [[0, 0]])).metric == 0
    assert task().score(predictions([[0, 0]], [[0, 0]])).metric is None
    assert task(metric="accuracy").score(predictions([[1, 2]], [[1, 0]])).metric == 0.5
    assert task().score(Predictions.join([])) is None


def test_predictions_of_different_width_join_and_split() -> None:
    wide, narrow = predictions([[1, 2, 0]], [[1, 0, 0]]), predictions([[3], [0]], [[3], [4]])
    both = Predictions.join([narrow, Predictions.join([]), wide])
    assert both.labels.tolist() == [[3, -1, -1], [0, -1, -1], [1, 2, 0]]
    assert at_rows(both, torch.tensor([2, 0])).predicted.tolist() == [[1, 0, 0], [3, -1, -1]]
    assert task().score(at_rows(both, torch.tensor([0, 1]))) == task().score(narrow)


def test_anchors_count_words() -> None:
    split = Split([np.array([0, 1]), np.array([2])], [np.array([0]), np.array([1, 2])])
    assert task().anchors(ROWS, ROWS, split) == {"majority": 0.6, "own_majority": 0.6}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label_names": ("O",)}, "label_names has 1 names"),
        ({"label_names": ("O", "PER")}, "'PER' is not a BIO tag; for other tags set metric: accuracy"),
        ({"label_names": ("B-PER", "I-PER")}, "'O' is missing"),
        ({"label_names": ("O", "O")}, "'O' twice"),
        ({"text_columns": ("a", "b")}, "at most 1 item"),
        ({"kind": "tagging"}, "label_names has no effect with kind tagging"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        task(**change)


def test_other_heads_are_rejected_before_the_run_starts() -> None:
    with pytest.raises(ConfigError, match=r"needs a tag for each word, .*set backbone.head=mean_pool"):
        check(make_tagging(backbone={"head": "model"}), "test")


def test_the_loss_of_a_sample_is_the_mean_over_its_words() -> None:
    made, rows = model(), shard()
    batch = rows.batch(ALL)
    out = made.forward(batch)
    assert isinstance(out.likelihood, Tags) and made.head is not None
    assert out.likelihood.truth(batch.labels).tolist() == [[1, 0, 3, -1, -1, -1], [0, *[-1] * 5], [0, 3, 4, 0, 0, 0]]
    states = made.base(**{n: v for n, v in batch.inputs.items() if n != "answer_at"}).last_hidden_state
    losses = F.cross_entropy(made.head(states).transpose(1, 2), batch.labels, reduction="none", ignore_index=-100)
    torch.testing.assert_close(out.losses, losses.sum(1) / torch.tensor([3.0, 1.0, 6.0]))
    for row in range(3):
        alone = made.forward(rows.batch(torch.tensor([row])))
        torch.testing.assert_close(alone.losses, out.losses[row : row + 1])


def test_squared_gradients_are_those_of_single_samples() -> None:
    made, rows = model(), shard()
    squares, _ = batch_squares(made, rows, ALL, list(made.trainable))
    for row in range(3):
        loss = made.forward(rows.batch(torch.tensor([row]))).losses.sum()
        alone = torch.autograd.grad(loss, list(made.trainable.values()))
        for name, grad in zip(made.trainable, alone, strict=True):
            torch.testing.assert_close(squares[name][row], grad.square(), rtol=1e-3, atol=1e-10)
    with pytest.raises(ModelError, match="too many labels for label: expected; set label to sampled or observed"):
        FisherScan(made, rows, [ALL], list(made.trainable), torch.Generator()).read("expected")


@pytest.mark.parametrize("label", ["observed", "sampled"])
def test_lanes_give_what_each_device_gives_alone(label: Label) -> None:
    """Two lanes with values of their own, and rows of other lengths: losses, tags, gradients, Fisher information."""
    made, whole = model(), encode_tagged(ROWS, load_tokenizer(Backbone()), "ner", 32)
    values = made.read()
    second = {name: value + 0.1 for name, value in values.items()}

    def work(each: Any, own: dict[str, Tensor], rows: ArrayShard) -> list[Any]:
        each.load(own)
        each.train(False)
        batch = rows.batch(torch.arange(rows.num_samples))
        out, _ = each.per_sample_grads(batch)
        grads = each.grad(out.losses.mean(), list(each.trainable.values()))
        scan = FisherScan(each, rows, [torch.arange(rows.num_samples)], list(values), torch.Generator().manual_seed(3))
        fisher = scan.read(label)
        return [out.losses.detach(), out.predicted, out.likelihood.truth(batch.labels), *grads, fisher.traces]

    first, other = whole.shard(np.array([0, 1])), whole.shard(np.array([2]))
    alone = [work(made, values, first), work(made, second, other)]
    lanes = Lanes(made, 2)
    pieces = [lambda: work(lanes.models[0], values, first), lambda: work(lanes.models[1], second, other)]
    for found, expected in zip(lanes.run(pieces), alone, strict=True):
        for value, same in zip(found, expected, strict=True):
            torch.testing.assert_close(value, same, rtol=1e-4, atol=1e-6)


def test_a_saved_run_tags_words(tmp_path: Path) -> None:
    run = simulate(check(make_tagging(rounds=1), "test"), tmp_path / "run")
    found = fibec_ray.load(run.folder)
    one, two = found.predict(["Will it rain in Ghent ?", ["Hello", "."]])
    assert len(one.labels) == 6 and len(two.labels) == 2 and set(one.labels) <= set(found.label_names)
    assert found.scores(["a b", ["c"]]).shape == (2, 2, 9)
    assert found.predict([["Hello", "."]])[0] == two and two.line() == " ".join(two.labels)
    with pytest.raises(DataError, match="input 1: task tagging takes a text with spaces between words, or a list"):
        found.predict(["a", 3])
