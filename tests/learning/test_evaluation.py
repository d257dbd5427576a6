"""Scores by hand, and the one metric over pooled predictions (E27)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds, shard_of

from fibec_ray.learning.evaluation import at_rows, evaluation_chunks, in_row_order, pooled
from fibec_ray.tasks import parse_task
from fibec_ray.tasks.scores import Scores
from fibec_ray.types import Broadcast, Predictions


def predictions(labels: Sequence[int], predicted: Sequence[int], losses: Sequence[float] | None = None) -> Predictions:
    values = [0.0] * len(labels) if losses is None else list(losses)
    ids = torch.tensor(labels, dtype=torch.int64), torch.tensor(predicted, dtype=torch.int64)
    return Predictions(*ids, torch.tensor(values))


def score(metric: str, found: Predictions) -> Scores | None:
    if metric == "r2":
        return parse_task({"name": "values", "kind": "regression"}).score(found)
    return parse_task({"name": "two", "label_names": ("no", "yes"), "metric": metric}).score(found)


LABELS, PREDICTED = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]
"""TP = 2, FN = 1, FP = 1, TN = 4"""


def metric(name: str, *parts: Predictions) -> float:
    found = score(name, Predictions.join(list(parts)))
    assert found is not None
    return found.metric


def test_accuracy_and_loss_by_hand() -> None:
    """6 of 8; (1 + 2 + ... + 8) / 8 = 4.5."""
    found = score("accuracy", predictions(LABELS, PREDICTED, range(1, 9)))
    assert found == Scores(accuracy=0.75, loss=4.5, metric=0.75)


def test_mcc_by_hand() -> None:
    """(TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)) = (8 - 1) / sqrt(3 * 3 * 5 * 5) = 7 / 15."""
    assert metric("mcc", predictions(LABELS, PREDICTED)) == pytest.approx(7 / 15)


def test_accuracy_f1_by_hand() -> None:
    """F1 of class 1 = 2 TP / (2 TP + FP + FN) = 4 / 6; with 6 of 8 right, the mean is (3 / 4 + 2 / 3) / 2."""
    assert metric("accuracy_f1", predictions(LABELS, PREDICTED)) == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_r2_by_hand_has_no_accuracy() -> None:
    """Values 1, 2, 3 around their mean: 2; missed by 0, 1, 0."""
    values = Predictions(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 3.0]), torch.tensor([0.0, 0.5, 0.0]))
    assert score("r2", values) == Scores(accuracy=None, loss=pytest.approx(0.5 / 3), metric=pytest.approx(0.5))
    assert score("r2", Predictions.join([])) is None
    one = Predictions(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([0.5]))
    assert score("r2", one) == Scores(accuracy=None, loss=0.5, metric=None)


def test_a_shard_is_evaluated_by_length_and_told_in_its_own_order(tiny_settings: Any, tmp_path: Path) -> None:
    """Batches of two; each sample's loss equals its loss alone."""
    settings = tiny_settings(
        "fibecfed", data={"max_length": 64}, partition={"kind": "iid"}, evaluation={"batch_size": 2}
    )
    _, worker_spec, _ = after_rounds(1, settings, tmp_path / "run")
    worker, broadcast = worker_spec.worker(), Broadcast(1, {}, {})
    shard = worker_spec.federation().test_shard(0)
    seen: list[int] = []
    forward = worker.model.forward

    def recorded(batch: Any, *rest: Any) -> Any:
        seen.append(batch.inputs["input_ids"].shape[1])
        return forward(batch, *rest)

    worker.model.forward = recorded  # type: ignore[method-assign]
    found = worker.evaluate_personal(0, broadcast, {})
    assert len(seen) > 1 and seen == sorted(seen)
    assert torch.equal(found.labels, shard.labels) and len(set(shard.lengths.tolist())) > 1
    for row in range(shard.num_samples):
        alone = forward(shard.batch(torch.tensor([row])))
        torch.testing.assert_close(found.losses[row : row + 1], alone.losses.detach())


def test_degenerate_predictions_have_scores() -> None:
    """All of one class: no correlation, and an F1 of 0."""
    constant = predictions([1, 1, 0], [0, 0, 0])
    assert metric("mcc", constant) == 0 and metric("accuracy_f1", constant) == pytest.approx(1 / 6)


def test_nothing_predicted_has_no_scores() -> None:
    assert score("accuracy", Predictions.join([])) is None
    assert score("mcc", predictions([], [])) is None


def test_pooled_mcc_is_not_the_mean_of_the_devices() -> None:
    """E27. Each device has a single class and is right on 4 of 5: no correlation in itself, (16 - 1) / 25 together."""
    ones, zeros = predictions([1] * 5, [1, 1, 1, 1, 0]), predictions([0] * 5, [0, 0, 0, 0, 1])
    assert [metric("mcc", part) for part in (ones, zeros)] == [0, 0]
    assert metric("mcc", pooled({0: ones, 1: zeros}, [0, 1])) == pytest.approx(15 / 25)


def test_pooled_accuracy_weighs_devices_by_their_samples() -> None:
    """E27: 1 of 1 and 1 of 4 are 2 of 5, and not 5/8."""
    small, large = predictions([1], [1]), predictions([1, 1, 1, 1], [1, 0, 0, 0])
    assert metric("accuracy", pooled({3: small, 8: large}, [8, 3])) == pytest.approx(2 / 5)


def test_pooled_is_the_concatenation_in_device_order() -> None:
    personal = {k: predictions([k], [k + 1], [float(k)]) for k in (2, 0, 1)}
    joined = pooled(personal, {2, 0})
    assert (joined.labels.tolist(), joined.predicted.tolist(), joined.losses.tolist()) == ([0, 2], [1, 3], [0, 2])
    assert len(pooled(personal, []).labels) == 0


def test_the_mean_loss_is_summed_in_float64() -> None:
    """Of 2^24 and three ones: float32 would lose the ones."""
    found = score("accuracy", predictions([0] * 4, [0] * 4, [2.0**24, 1.0, 1.0, 1.0]))
    assert found is not None and found.loss == (2**24 + 3) / 4


def test_chunks_have_like_lengths_and_every_row_once() -> None:
    """Stable: rows 1 and 4 of length 2 in that order."""
    chunks = evaluation_chunks(shard_of([[1] * n for n in (5, 2, 9, 1, 2, 7, 5)]), 3)
    assert [chunk.tolist() for chunk in chunks] == [[3, 1, 4], [0, 6, 5], [2]]


def test_predictions_by_chunk_go_back_to_their_rows() -> None:
    chunks = evaluation_chunks(shard_of([[1] * n for n in (5, 2, 9, 1, 2, 7, 5)]), 3)
    parts = [predictions(rows.tolist(), (rows + 10).tolist(), (rows / 2).tolist()) for rows in chunks]
    ordered = in_row_order(chunks, parts)
    assert ordered.labels.tolist() == list(range(7))
    assert ordered.predicted.tolist() == list(range(10, 17))
    assert ordered.losses.tolist() == [i / 2 for i in range(7)]


def test_at_rows_takes_rows_as_asked() -> None:
    taken = at_rows(predictions([0, 1, 2], [3, 4, 5], [6.0, 7.0, 8.0]), torch.tensor([2, 0, 2]))
    assert (taken.labels.tolist(), taken.predicted.tolist()) == ([2, 0, 2], [5, 3, 5])
    assert taken.losses.tolist() == [8, 6, 8]


def test_joining_keeps_types() -> None:
    joined = Predictions.join([predictions([1], [0], [0.5]), predictions([], [])])
    assert (joined.labels.dtype, joined.losses.dtype) == (torch.int64, torch.float32)
    assert not math.isnan(joined.losses.sum().item())
