"""Networks from scratch through the whole engine: which methods apply, what the log says, and FIPA's exact step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import classes, make_digits, make_regression, make_tiny, named, needs
from numpy.typing import NDArray
from rotation import in_turn
from safetensors.torch import load_file

from fibec_ray.config.load import check
from fibec_ray.config.names import method_files
from fibec_ray.errors import ConfigError
from fibec_ray.learning.federation import Federation
from fibec_ray.models.net_model import NetModel
from fibec_ray.parts.peft.full import Full
from fibec_ray.roundlog.reader import read_devices, read_rounds, read_table
from fibec_ray.runs.simulation import simulate
from fibec_ray.tensors import digest

METHODS = [path.stem for path in method_files()]
MAKERS = {"digits": make_digits, "regression": make_regression}


def of(task: str, method: str | dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A short experiment that has what the method asks for, but for optimisers: SGD is set already."""
    wanted = {key: value for key, value in needs(method).items() if key != "local"} if isinstance(method, str) else {}
    return MAKERS[task](method, **{"rounds": 2, **wanted, **changes})


# --- which methods apply


def lacks(method: str) -> str | None:
    """The axis whose part cannot do without text or a transformer, if any."""
    try:
        check(of("digits", method), "test")
    except ConfigError as error:
        return str(error).removeprefix("test: ").partition(":")[0]
    return None


APPLIES = [method for method in METHODS if lacks(method) is None]


def test_what_needs_a_transformer_or_text_is_refused_and_nothing_else() -> None:
    refused = {method: lacks(method) for method in METHODS if method not in APPLIES}
    expected = {name: "method.peft" for name in ("dora", "ia3", "loha", "lokr", "vera")}
    expected |= {"voc": "method.curriculum", "fedsa-lora": "method", "ffa-lora": "method"}
    assert expected.items() <= refused.items()
    assert {"fedavg", "fedprox", "scaffold", "feddyn", "fednova", "fedadam", "krum", "fisher-merging", "fipa"} <= set(
        APPLIES
    )
    assert {"fibecfed", "fedper", "local", "self-paced"} <= set(APPLIES)


@pytest.mark.parametrize(
    ("method", "task"), in_turn([(method, task) for method in APPLIES for task in MAKERS], 20, "methods from scratch")
)
def test_every_method_that_applies_runs(method: str, task: str, tmp_path: Path) -> None:
    run = simulate(check(of(task, method), "test"), tmp_path / "run")
    last = run.rows[-1]
    assert last["train_loss"] is None if method == "zero-shot" else math.isfinite(last["train_loss"])
    assert math.isfinite(last["personal_loss"])
    assert (last["personal_accuracy"] is None) == (task == "regression")
    assert math.isfinite(last["personal_metric"])


def test_the_personal_head_is_the_output_layer(tmp_path: Path) -> None:
    """FedPer on a network from scratch, as the paper has it."""
    run = simulate(check(of("digits", "fedper"), "test"), tmp_path / "run")
    assert all(row["global_accuracy"] is None for row in run.rows)
    shared = sum(p.numel() for n, p in model().trainable.items() if n.startswith("layers."))
    assert read_devices(run.folder).column("bytes_up_delta").to_pylist() == [4 * shared] * 6


def model() -> NetModel:
    experiment = check(make_digits(), "test")
    return NetModel(experiment.backbone, (1, 8, 8), classes(10), experiment.seed)  # type: ignore[arg-type]


# --- what is refused, and what is filled in


def refusal(settings: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check(settings, "test")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_network_is_trained_whole_unless_the_method_says_otherwise() -> None:
    assert check(make_digits("fedprox"), "test").method.peft == Full()
    assert check({**make_digits(), "method": {}}, "test").method.peft == Full()
    says = refusal(make_digits({"name": "x", "peft": "lora"}))
    assert "method.peft: lora adapts a pretrained transformer" in says and "set method.peft=full" in says


def test_text_and_numbers_do_not_mix() -> None:
    text = make_tiny(backbone=None) | {"backbone": {"kind": "mlp"}}
    assert "backbone mlp takes numbers, but task synthetic is text" in refusal(text)
    assert "task digits has no text" in refusal({**make_digits(), "backbone": make_tiny()["backbone"]})


def test_parts_say_what_they_lack() -> None:
    said = {
        "rarity": {"curriculum": "rarity"},
        "length_order": {"curriculum": "length_order"},
        "fisher": {"curriculum": {"kind": "fisher", "length_power": 1}},
    }
    for kind, axes in said.items():
        assert f"method.curriculum: {kind} works on tokens" in refusal(make_digits({"name": "x", **axes}))
    linear = make_regression("fibecfed", backbone={"kind": "mlp", "hidden": []})
    assert "method.sharing: gal chooses among layers, but backbone.hidden has none" in refusal(linear)


def test_keys_of_a_network_are_checked_like_all_others() -> None:
    assert "backbone.hiden: no such key; did you mean 'hidden'?" in refusal(
        make_regression(backbone={"kind": "mlp", "hiden": [3]})
    )
    assert "backbone: no such kind 'mpl'; did you mean 'mlp'?" in refusal(make_regression(backbone={"kind": "mpl"}))
    assert "backbone.hidden.0:" in refusal(make_regression(backbone={"kind": "mlp", "hidden": [0]}))


def test_the_resolved_experiment_loads_again() -> None:
    for settings in (make_digits("fibecfed"), make_regression()):
        experiment = check(settings, "test")
        assert check(experiment.model_dump(mode="json"), "test") == experiment


# --- what a run leaves behind


def test_a_regression_is_scored_by_r2_and_half_squared_errors(tmp_path: Path) -> None:
    """By hand from the saved model: the last row of the log."""
    run = simulate(check(of("regression", "fedavg"), "test"), tmp_path / "run")
    values = load_file(run.folder / "adapter" / "model.safetensors")
    config = json.loads((run.folder / "adapter" / "config.json").read_text())
    assert digest(values) == run.adapter_digest and config["hidden"] == [6, 5] and config["input_shape"] == [2]
    test = Federation.load(run.folder / "data").test
    x = torch.from_numpy(np.array(test.features))  # type: ignore[union-attr]
    for name in ("layers.0", "layers.1"):
        x = torch.tanh(x @ values[f"{name}.weight"].T + values[f"{name}.bias"])
    predicted = (x @ values["output.weight"].T + values["output.bias"])[:, 0].double().numpy()
    missed = np.square(predicted - test.labels)
    row = read_rounds(run.folder).to_pylist()[-1]
    assert row["global_metric"] == pytest.approx(1 - missed.sum() / np.square(test.labels - test.labels.mean()).sum())
    assert row["global_loss"] == pytest.approx(missed.mean() / 2)
    assert row["global_accuracy"] is row["personal_accuracy"] is row["personal_accuracy_trained"] is None
    assert set(run.prepared.anchors) == {"mean", "own_mean"}
    assert run.prepared.anchors["own_mean"] > 0.2 > run.prepared.anchors["mean"]


def test_digits_are_scored_by_accuracy_beside_its_anchors(tmp_path: Path) -> None:
    run = simulate(check(of("digits", "fedavg"), "test"), tmp_path / "run")
    row = read_rounds(run.folder).to_pylist()[-1]
    assert row["global_accuracy"] == row["global_metric"] and set(run.prepared.anchors) == {"majority", "own_majority"}


def test_samples_that_are_no_text_have_no_length_in_the_log(tmp_path: Path) -> None:
    run = simulate(check(of("digits", "fibecfed"), "test"), tmp_path / "run")
    assert set(read_devices(run.folder).column("length_seen").to_pylist()) == {None}
    assert set(read_table(run.folder, "batches").column("length").to_pylist()) == {0.0}
    assert None not in read_devices(run.folder).column("difficulty_seen").to_pylist()


def test_training_learns_digits(tmp_path: Path) -> None:
    """Chance is .1."""
    settings = make_digits(rounds=8, cohort_size=6, partition={"kind": "iid"}, data={"max_train": 600})
    settings["backbone"] = {"kind": "mlp", "hidden": [32]}
    run = simulate(check(settings, "test"), tmp_path / "run")
    assert run.rows[-1]["global_accuracy"] > 0.8


# --- E15, E16: one round of FIPA on linear regressions whose devices train to their optimum

EXACT = {"kind": "fipa", "block": "all", "rank": 4, "trust": None, "warmup_rounds": 0, "max_samples": None}
PARTITIONS = {
    "same distribution": {"kind": "iid"},
    "a region each": {"kind": "pathological", "classes_per_device": 1},
}


def one_round(aggregator: dict[str, Any], partition: dict[str, Any], folder: Path) -> tuple[NDArray[Any], Federation]:
    """(w, b) after a round of 500 full-batch steps on each of four devices, by the engine; and its data."""
    settings = make_regression({"name": "x", "aggregator": aggregator}, rounds=1, num_devices=4, cohort_size=4)
    settings |= {"backbone": {"kind": "mlp", "hidden": []}, "partition": partition}
    settings["data"] = {"regression": {"function": "linear", "regions": [4, 1, 1], "noise": 1.0, "num_train": 120}}
    settings["local"] |= {"learning_rate": 0.5, "momentum": 0.9, "batch_size": 120, "epochs": 500, "clip": None}
    run = simulate(check(settings, "test"), folder)
    saved = load_file(run.folder / "adapter" / "model.safetensors")
    weights = np.append(saved["output.weight"][0].numpy(), saved["output.bias"].numpy()).astype(np.float64)
    return weights, Federation.load(run.folder / "data")


def normal_equations(data: Federation, rows: Any = slice(None)) -> NDArray[Any]:
    """(w, b) that fit these training rows best."""
    x = np.array(data.train.features[rows], dtype=np.float64)  # type: ignore[union-attr]
    x = np.hstack([x, np.ones((len(x), 1))])
    return np.linalg.lstsq(x, np.array(data.train.labels[rows], dtype=np.float64), rcond=None)[0]


@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS)
def test_one_round_of_fipa_solves_the_pooled_normal_equations(partition: dict[str, Any], tmp_path: Path) -> None:
    """To float32 precision, where FedAvg stays with the mean of the devices' own solutions."""
    found, data = one_round(EXACT, partition, tmp_path / "fipa")
    best = normal_equations(data)
    assert np.abs(found - best).max() < 2e-6
    averaged, _ = one_round({"kind": "mean"}, partition, tmp_path / "fedavg")
    own = [normal_equations(data, rows) for rows in data.train_rows]
    sizes = np.array([len(rows) for rows in data.train_rows])
    assert averaged == pytest.approx(np.average(own, axis=0, weights=sizes), abs=1e-4)
    assert np.abs(averaged - best).max() > 0.03


def test_tasks_are_those_of_the_files() -> None:
    assert make_digits()["task"] == named("tasks", "digits")
