"""Rows of the round log from what a fleet returns, summed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fibec_ray.learning.run_totals import Row, RunTotals
from fibec_ray.reports import DeviceReport
from fibec_ray.tasks import Task, parse_task
from fibec_ray.types import DroppedWork, EvaluationResult, Layout, Predictions, RoundPlan, RoundResult, SetupResult


def task(metric: str) -> Task:
    return parse_task({"name": "two", "label_names": ("no", "yes"), "metric": metric})


LAYOUT = Layout({"layer.0.w": 0, "layer.1.w": 1, "head.w": None}, num_layers=2, adapter_config={})


def opened(*reports: DeviceReport, scores: list[float] | None = None) -> SetupResult:
    layer_scores = None if scores is None else torch.tensor(scores)
    return SetupResult(list(reports), frozenset({"layer.1.w", "head.w"}), LAYOUT, layer_scores)


def report(device: int, round_: int = 0, **values: Any) -> DeviceReport:
    return DeviceReport(round=round_, device=device, **{"num_samples": 10, "num_steps": 1, **values})


def totals_with_setup(*reports: DeviceReport) -> tuple[RunTotals, Row]:
    totals = RunTotals(task("accuracy"), batch_size=4)
    row, _ = totals.setup(opened(*reports))
    return totals, row


def plan(round_: int, **values: Any) -> RoundPlan:
    return RoundPlan(round_, rounds=9, cohort=(), learning_rate=1e-3, **values)


def right(*values: bool) -> Predictions:
    labels = torch.ones(len(values), dtype=torch.int64)
    return Predictions(labels, torch.tensor([int(value) for value in values]), torch.zeros(len(values)))


def test_totals_go_on_from_the_setup_through_the_rounds() -> None:
    """Time: slowest of 2 and 3, then of 5 and 1, then 4: 3, 8, 12. Bytes: 30, then 110 more, then 12 more."""
    totals, setup = totals_with_setup(
        report(0, -1, sim_time_s=2.0, bytes_down=10, bytes_up=1),
        report(1, -1, sim_time_s=3.0, bytes_down=17, bytes_up=2),
    )
    rounds = [
        RoundResult(
            [
                report(1, 0, sim_time_s=5.0, bytes_down=40, bytes_up=30, num_samples_seen=8, num_batches_seen=2),
                report(0, 0, sim_time_s=1.0, bytes_down=20, bytes_up=20, num_samples_seen=3, num_batches_seen=1),
            ]
        ),
        RoundResult([report(2, 1, sim_time_s=4.0, bytes_down=5, bytes_up=7, num_samples_seen=6, num_batches_seen=2)]),
    ]
    rows = [setup, *(totals.round(plan(t), result, None)[0] for t, result in enumerate(rounds))]
    assert [row["round"] for row in rows] == [-1, 0, 1]
    assert [row["sim_time_s"] for row in rows] == [3, 8, 12]
    assert [(row["bytes_down"], row["bytes_up"]) for row in rows] == [(27, 3), (60, 50), (5, 7)]
    assert [row["bytes_total"] for row in rows] == [30, 140, 152]
    assert [row["num_samples"] for row in rows] == [0, 11, 6]
    assert [row["num_samples_total"] for row in rows] == [0, 11, 17]
    assert [row["num_batches"] for row in rows] == [0, 3, 2]
    assert [row["num_devices_trained"] for row in rows] == [0, 2, 3]
    walls = [row["wall_time_s"] for row in rows]
    assert walls == sorted(walls) and walls[0] >= 0


def test_means_over_devices_and_over_steps() -> None:
    """Loss (1 * 3 + 2 * 1) / 4; of ceil(10 / 4) = 3 batches 1 were seen, of ceil(8 / 4) = 2 both: mean 2/3."""
    totals, setup = totals_with_setup(report(0, -1))
    results = [
        report(0, num_batches_seen=1, num_steps=3, train_loss=1.0, learning_rate=0.1, kept_fraction=0.25, flops=1e9),
        report(
            1,
            num_samples=8,
            num_batches_seen=2,
            num_steps=1,
            train_loss=2.0,
            learning_rate=0.1,
            kept_fraction=0.75,
            flops=2e9,
        ),
    ]
    row, _ = totals.round(plan(0), RoundResult(results), None)
    assert row["train_loss"] == pytest.approx(5 / 4) and row["data_fraction"] == pytest.approx(2 / 3)
    assert (row["num_steps"], row["kept_fraction"], row["flops"]) == (4, 0.5, 3e9)
    assert row["learning_rate"] == pytest.approx(0.1)
    assert [setup[name] for name in ("train_loss", "data_fraction", "kept_fraction", "learning_rate")] == [None] * 4


def test_lost_devices_are_counted_and_nothing_else_of_them() -> None:
    totals, _ = totals_with_setup()
    row, _ = totals.round(plan(0), RoundResult([report(4, bytes_up=9)], lost=(7, 8)), None)
    assert (row["num_devices"], row["num_lost"], row["bytes_total"], row["num_devices_trained"]) == (3, 2, 9, 1)


def test_a_round_that_lost_all_devices_has_a_row() -> None:
    totals, _ = totals_with_setup(report(0, -1, sim_time_s=3.0))
    row, _ = totals.round(plan(0), RoundResult([], lost=(1, 2)), None)
    assert (row["num_devices"], row["sim_time_s"], row["train_loss"], row["data_fraction"]) == (2, 3, None, None)


def test_scores_are_pooled_and_those_of_trained_devices_are_apart() -> None:
    """Devices 0, 1, 2 are right on 2 of 2, 1 of 4, 0 of 2: together 3 of 8; after device 1 has trained 1 of 4, and
    after device 0 too, 3 of 6. The global model is right on 1 of 2.
    """
    totals, _ = totals_with_setup()
    personal = {0: right(True, True), 1: right(True, False, False, False), 2: right(False, False)}
    evaluation = EvaluationResult(right(True, False), personal)
    first, _ = totals.round(plan(0), RoundResult([report(1)]), evaluation)
    second, _ = totals.round(plan(1), RoundResult([report(0), report(1)]), evaluation)
    for row, trained in ((first, 1 / 4), (second, 3 / 6)):
        assert row["global_accuracy"] == row["global_metric"] == 1 / 2
        assert row["personal_accuracy"] == row["personal_metric"] == 3 / 8
        assert row["personal_accuracy_trained"] == trained
        assert row["global_loss"] == row["personal_loss"] == 0
    assert [row["num_devices_trained"] for row in (first, second)] == [1, 2]


def test_trained_devices_without_test_samples_have_no_accuracy() -> None:
    totals, _ = totals_with_setup()
    evaluation = EvaluationResult(right(True), {0: right(True), 1: right()})
    row, _ = totals.round(plan(0), RoundResult([report(1)]), evaluation)
    assert row["personal_accuracy_trained"] is None and row["personal_accuracy"] == 1


def test_the_metric_is_the_task_s_own() -> None:
    """4 of 5 right of each class: accuracy .8, Matthews correlation (16 - 1) / 25."""
    totals = RunTotals(task("mcc"), batch_size=4)
    totals.setup(opened())
    own = {
        0: Predictions(torch.ones(5, dtype=torch.int64), torch.tensor([1, 1, 1, 1, 0]), torch.zeros(5)),
        1: Predictions(torch.zeros(5, dtype=torch.int64), torch.tensor([0, 0, 0, 0, 1]), torch.zeros(5)),
    }
    row, _ = totals.round(
        plan(0), RoundResult([report(0)]), EvaluationResult(Predictions.join(list(own.values())), own)
    )
    for model in ("global", "personal"):
        assert row[f"{model}_accuracy"] == pytest.approx(0.8) and row[f"{model}_metric"] == pytest.approx(0.6)


def test_a_round_without_evaluation_has_empty_scores() -> None:
    totals, setup = totals_with_setup()
    row, _ = totals.round(plan(0), RoundResult([report(0)]), None)
    names = [f"{model}_{name}" for model in ("global", "personal") for name in ("accuracy", "loss", "metric")]
    for name in [*names, "personal_accuracy_trained"]:
        assert setup[name] is None and row[name] is None


def test_layer_rows_by_hand() -> None:
    """Fisher mass and kept neurons are means over the devices that have a mask; layer 1 is shared."""
    totals = RunTotals(task("accuracy"), batch_size=4)
    _, at_setup = totals.setup(opened(scores=[0.25, 0.5]))
    reports = [
        report(0, layer_fisher=(1.0, 0.0), kept_neurons=(4, 0)),
        report(1, layer_fisher=(2.0, 0.0), kept_neurons=(7, 0)),
        report(2),
    ]
    _, rows = totals.round(plan(0), RoundResult(reports), None)
    assert rows == [
        {"round": 0, "layer": 0, "sensitivity": 0.25, "shared": False, "fisher_mass": 1.5, "kept_neurons": 5.5},
        {"round": 0, "layer": 1, "sensitivity": 0.5, "shared": True, "fisher_mass": 0.0, "kept_neurons": 0.0},
    ]
    assert [(row["round"], row["fisher_mass"], row["kept_neurons"]) for row in at_setup] == [(-1, None, None)] * 2
    assert totals.layout is LAYOUT


def test_methods_without_layer_scores_have_none() -> None:
    totals = RunTotals(task("accuracy"), batch_size=4)
    _, rows = totals.setup(opened())
    assert [row["sensitivity"] for row in rows] == [None, None]


def test_evaluations_are_one_row_for_each_device() -> None:
    """Device 0 is right on 1 of 4 and has not trained, device 1 on 2 of 2, device 2 has no test samples."""
    totals = RunTotals(
        task("accuracy"), batch_size=4, classify=lambda devices: dict.fromkeys(list(devices)[:2], "fast")
    )
    totals.setup(opened())
    fast: dict[str, Any] = {"speed_class": "fast"}
    empty = {"accuracy": None, "loss": None, "speed_class": None}
    evaluation = EvaluationResult(right(), {1: right(True, True), 0: right(True, False, False, False), 2: right()})
    totals.round(plan(3), RoundResult([report(1, 3)]), evaluation)
    rows = totals.evaluations(3, evaluation)
    assert rows == [
        {"round": 3, "device": 0, "num_samples": 4, "trained": False, "accuracy": 0.25, "loss": 0.0, **fast},
        {"round": 3, "device": 1, "num_samples": 2, "trained": True, "accuracy": 1.0, "loss": 0.0, **fast},
        {"round": 3, "device": 2, "num_samples": 0, "trained": False, **empty},
    ]
    assert totals.evaluations(4, None) == []


def test_energy_goes_on_through_rounds_and_checkpoints() -> None:
    """3 J in setup, then 1 + 4 J, then 2 J after a checkpoint. A checkpoint of an earlier release does not know."""
    totals, setup = totals_with_setup(report(0, -1, energy_j=3.0))
    row, _ = totals.round(plan(0), RoundResult([report(0, energy_j=1.0), report(1, energy_j=4.0)]), None)
    assert (setup["energy_total_j"], row["energy_j"], row["energy_total_j"]) == (3, 5, 8)
    for known, expected in ((totals.state(), 10), (totals.state().model_copy(update={"energy_total_j": None}), None)):
        again = RunTotals(task("accuracy"), batch_size=4)
        again.restore(opened(), known)
        row, _ = again.round(plan(1), RoundResult([report(0, 1, energy_j=2.0)]), None)
        assert (row["energy_j"], row["energy_total_j"]) == (2, expected)


def test_the_cost_of_dropped_work_is_kept_apart() -> None:
    totals, setup = totals_with_setup()
    dropped = plan(0, dropped=(3, 5), dropped_work=DroppedWork(flops=7.0, num_bytes=30, energy_j=0.5))
    row, _ = totals.round(dropped, RoundResult([report(0, bytes_up=9, energy_j=2.0)]), None)
    assert (row["num_dropped"], row["dropped_bytes"], row["dropped_flops"], row["dropped_energy_j"]) == (
        2,
        30,
        7.0,
        0.5,
    )
    assert (row["bytes_total"], row["energy_total_j"], row["num_devices"]) == (9, 2.0, 1)
    assert (setup["num_dropped"], setup["dropped_bytes"]) == (0, 0)
    unknown, _ = totals.round(plan(1, dropped=(3,), dropped_work=None), RoundResult([]), None)
    assert unknown["num_dropped"] == 1 and unknown["dropped_bytes"] is None and unknown["dropped_energy_j"] is None
