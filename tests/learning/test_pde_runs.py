"""Runs of the Fisher-KPP equation: what the log holds, by hand; what is refused; and that FIPA solves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pde
from safetensors.torch import load_file
from torch.func import hessian, vmap

from fibec_ray.config.load import check, load_experiment
from fibec_ray.errors import ConfigError, DataError
from fibec_ray.export.load import load
from fibec_ray.learning.federation import Federation
from fibec_ray.models.built import ModelRequest
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.simulation import Finished, simulate

CONFIGS = Path(__file__).parents[2] / "configs"


def saved_function(run: Finished) -> Any:
    """u of the run's model at a point (1,), by its weights alone."""
    values = load_file(run.folder / "adapter" / "model.safetensors")
    config = json.loads((run.folder / "adapter" / "config.json").read_text())
    assert (config["hidden"], config["input_shape"], config["num_scores"]) == ([8], [4], 1)

    def u(x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(values["layers.0.weight"] @ x + values["layers.0.bias"])
        return (values["output.weight"] @ x + values["output.bias"])[0]

    return u


def test_scores_compare_the_network_with_the_exact_solution(tmp_path: Path) -> None:
    run = simulate(check(make_pde(rounds=2), "test"), tmp_path / "run")
    x = np.linspace(0, 1, 40)
    exact = x**2 * (1 - x)
    missed = vmap(saved_function(run))(torch.tensor(x, dtype=torch.float32)[:, None]).double().numpy() - exact
    row = read_rounds(run.folder).to_pylist()[-1]
    assert row["global_loss"] == pytest.approx(np.square(missed).mean() / 2, rel=1e-4)
    assert row["global_metric"] == pytest.approx(1 - np.square(missed).sum() / np.square(exact - exact.mean()).sum())
    assert dict(row["global_metrics"]) == {"relative_l2": pytest.approx(np.linalg.norm(missed) / np.linalg.norm(exact))}
    assert row["global_accuracy"] is row["personal_accuracy"] is None
    assert run.prepared.anchors == {"mean": pytest.approx(0, abs=1e-12), "own_mean": pytest.approx(0.88, abs=0.02)}


def test_training_losses_are_half_the_squared_residuals(tmp_path: Path) -> None:
    experiment = check(make_pde(rounds=1), "test")
    run = simulate(experiment, tmp_path / "run")
    train, u = Federation.load(run.folder / "data").train, saved_function(run)
    answers = run.prepared.answers(experiment.task)
    model = experiment.backbone.build(ModelRequest(experiment.method.peft, answers, 0, (4,)))
    model.load(load_file(run.folder / "adapter" / "model.safetensors"))
    found = model.forward(train.shard(np.arange(64)).batch(torch.arange(64))).losses
    x = torch.from_numpy(np.array(train.features[:, :1]))  # type: ignore[union-attr]
    value, second = vmap(u)(x), vmap(hessian(u))(x)[:, 0, 0]
    f = -2 + 6 * x + x**2 - x**3 - x**4 + 2 * x**5 - x**6
    inside = (-second + value * (1 - value) - f[:, 0]).square() / 2
    ends = 100 * value.square() / 2  # the solution is 0 at both ends
    torch.testing.assert_close(found.detach(), torch.cat([inside[:60], ends[60:]]), rtol=1e-3, atol=1e-5)


def test_only_the_outer_devices_have_boundary_points(tmp_path: Path) -> None:
    run = simulate(check(make_pde(rounds=1), "test"), tmp_path / "run")
    data = Federation.load(run.folder / "data")
    boundary = np.array(data.train.features[:, 1] == 0)  # type: ignore[union-attr]
    found = sorted((float(data.train.features[rows, 0].mean()), int(boundary[rows].sum())) for rows in data.train_rows)  # type: ignore[union-attr]
    assert [count for _, count in found] == [2, 0, 0, 0, 0, 2]


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        ({"kind": "cnn"}, "needs second derivatives of the network, which backbone cnn does not have"),
        ({"kind": "mlp", "activation": "relu"}, "set backbone to {kind: mlp, activation: tanh}"),
    ],
)
def test_networks_without_second_derivatives_are_refused(backbone: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(make_pde(backbone=backbone), "test")
    assert says in str(caught.value)


def test_the_saved_model_predicts_from_coordinates(tmp_path: Path) -> None:
    run = simulate(check(make_pde(rounds=1), "test"), tmp_path / "run")
    model, x = load(run.folder), torch.linspace(0, 1, 5)[:, None]
    found = [one.value for one in model.predict(x.numpy())]
    torch.testing.assert_close(torch.tensor(found), vmap(saved_function(run))(x))
    with pytest.raises(DataError, match=r"predicts from numbers of shape \(N, 1\), and was given \(5, 4\)"):
        model.predict(np.zeros((5, 4)))


@pytest.mark.slow
def test_fipa_solves_what_fedavg_does_not(tmp_path: Path) -> None:
    """The damped solve, with the packaged experiment."""
    found = {}
    for name, method in (
        ("fedavg", ["method=fedavg"]),
        ("fipa", ["method=fipa-paper", "method.aggregator.solve=damped"]),
    ):
        path = CONFIGS / "experiments" / "fisher-kpp.yaml"
        run = simulate(load_experiment(path, ["fleet.kind=local", *method]), tmp_path / name)
        found[name] = dict(run.rows[-1]["global_metrics"])["relative_l2"]
    assert found["fipa"] < 0.2 and found["fedavg"] > 1
