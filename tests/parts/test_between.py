"""Small trained matrices between frozen factors: RAVAN and Fed-SB, against dense weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import row
from conftest import after_rounds
from peft_models import batch, made, part_of, stirred
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.errors import ConfigError
from fibec_ray.low_rank import CORE, A, B
from fibec_ray.models.torch_model import TorchModel
from fibec_ray.parts.aggregator.fed_sb import FedSb
from fibec_ray.parts.peft.between import Between
from fibec_ray.parts.peft.ravan import Ravan
from fibec_ray.tensors import Tensors, add, num_bytes, weighted_mean
from fibec_ray.types import Asked, DeviceUpdate


def products(part: Between, values: Tensors, model: TorchModel) -> Tensors:
    """The full update of each adapted weight, (out, in), from the saved LoRA, whose factor alpha / r is 1."""
    saved, config = part.saved(values, model.adapter_config)
    assert config["lora_alpha"] == config["r"]
    return {x: saved[x + B] @ saved[x + A] for x in model.adapter_config["sizes"]}


# --- RAVAN


def test_ravan_adds_the_heads_in_their_formula(tmp_path: Path) -> None:
    """sum_i s_i B_i H_i A_i, written out."""
    part = Ravan(heads=3, r=2)
    model = stirred(made(part, "bert", "mean_pool", tmp_path))
    values, x = model.read(), "base_model.model.encoder.layer.1.attention.self.value"
    a, b = part._frozen(x, 32, 32)
    expected = torch.zeros(32, 32)
    for i in range(3):
        own = slice(2 * i, 2 * i + 2)
        expected += values[f"{x}.ravan_s.{i}.weight"].item() * b[:, own] @ values[f"{x}.ravan_H.{i}.weight"] @ a[own]
    torch.testing.assert_close(products(part, values, model)[x], expected)
    layer = model.peft_model.get_submodule(x)
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(states), layer.base_layer(states) + states @ expected.T)


def test_ravan_starts_as_the_base_with_heads_that_do_not_overlap(tmp_path: Path) -> None:
    part = Ravan(heads=2, r=3)
    model = made(part, "bert", "mean_pool", tmp_path)
    assert all(not value.any() for value in products(part, model.read(), model).values())
    a, b = part._frozen("x", 7, 9)
    torch.testing.assert_close(a @ a.T, torch.eye(6))
    torch.testing.assert_close(b.T @ b, torch.eye(6))
    a, b = part._frozen("x", 4, 9)  # too many for 4 outputs: of length 1 only
    assert a.shape == (6, 9) and b.shape == (4, 6)
    torch.testing.assert_close(b.norm(dim=0), torch.ones(6))


def test_ravan_sends_scaled_matrices_so_that_the_mean_is_that_of_the_updates(tmp_path: Path) -> None:
    part = Ravan(heads=2, r=3)
    model = made(part, "bert", "mean_pool", tmp_path)
    devices = [_drawn(model.read(), seed) for seed in (1, 2, 3)]
    folded = [part.folded(values) for values in devices]
    for values, sent in zip(devices, folded, strict=True):
        assert all((value == 1).all() for name, value in sent.items() if ".ravan_s." in name)
        torch.testing.assert_close(products(part, sent, model), products(part, values, model))
    weights = (1, 2, 5)
    mean = products(part, weighted_mean(zip(weights, folded, strict=True)), model)
    exact = weighted_mean(zip(weights, (products(part, values, model) for values in devices), strict=True))
    torch.testing.assert_close(mean, exact)
    apart = products(part, weighted_mean(zip(weights, devices, strict=True)), model)
    assert not torch.allclose(next(iter(apart.values())), next(iter(exact.values())), atol=1e-3), "as s and H alone"


def test_ravans_scales_are_1_after_a_round_whatever_noise_they_got(tmp_path: Path) -> None:
    part = Ravan(heads=2, r=3)
    values = _drawn(made(part, "bert", "mean_pool", tmp_path).read(), 1)
    after = part.after_round(values, {}, 0, 9)
    assert after.keys() == {name for name in values if ".ravan_s." in name}
    assert all((value == 1).all() for value in after.values())


def _drawn(values: Tensors, seed: int) -> Tensors:
    rng = torch.Generator().manual_seed(seed)
    return {name: value + torch.randn(value.shape, generator=rng) for name, value in values.items()}


def test_ravan_trains_on_devices_and_keeps_its_scales_at_1(tiny_settings: Any, tmp_path: Path) -> None:
    method = {"name": "m", "peft": {"kind": "ravan", "heads": 2, "r": 4}}
    fleet, _, reports = after_rounds(2, tiny_settings(method), tmp_path)
    values = fleet.adapter()
    matrices, scales = ([v for n, v in values.items() if word in n] for word in (".ravan_H.", ".ravan_s."))
    assert all(value.any() for value in matrices) and all((value == 1).all() for value in scales)
    sent = {n: value for n, value in values.items() if ".ravan_" in n or n.startswith("head.")}
    assert {report.bytes_up for report in reports} == {num_bytes(sent)}


# --- Fed-SB


def dense_gradients(model: TorchModel) -> Tensors:
    """Mean gradients of the adapted weights: of a dense D = 0 that is added to W."""
    found = {x: torch.zeros(size, requires_grad=True) for x, size in model.adapter_config["sizes"].items()}
    hooks = [
        model.peft_model.get_submodule(x).register_forward_hook(lambda _, args, y, d=d: y + F.linear(args[0], d))
        for x, d in found.items()
    ]
    losses = torch.stack([model.forward(row(batch(), i)).losses.sum() for i in range(3)])
    grads = torch.autograd.grad(losses.mean(), list(found.values()))
    for hook in hooks:
        hook.remove()
    return dict(zip(found, grads, strict=True))


class Three:
    """The three samples of `batch` as a device's data."""

    num_samples = 3

    def batch(self, rows: Tensor) -> Any:
        whole = batch()
        return type(whole)({name: value[rows] for name, value in whole.inputs.items()}, whole.labels[rows])


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_fed_sb_s_devices_send_the_gradients_of_the_frozen_weights(family: str, tmp_path: Path) -> None:
    model: Any = made(part_of("lora_sb"), family, "mean_pool", tmp_path)
    aggregator, shard, rng = FedSb(), Three(), torch.Generator()
    found = aggregator.extras_before(model, shard, list(model.trainable), 0, rng)  # type: ignore[arg-type]
    expected = {f"gradient/{x}": value for x, value in dense_gradients(model).items()}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    asked = Asked(0, 0.1, {n: model.read()[n] for n in model.trainable}, untrained=model.read(model.server_only))
    extras = aggregator.expected_extras(asked, DeviceUpdate(0, 3, 1, {}))
    assert {name: one.shape for name, one in extras.items()} == {n: tuple(v.shape) for n, v in found.items()}
    model.load({name: torch.ones_like(value) for name, value in asked.untrained.items()})
    assert aggregator.extras_before(model, shard, list(model.trainable), 1, rng) == {}  # type: ignore[arg-type]
    asked = replace(asked, round=1, untrained=model.read(model.server_only))
    assert aggregator.expected_extras(asked, DeviceUpdate(0, 3, 1, {})) == {}


def test_fed_sb_s_gradient_of_an_unused_weight_is_zero(tmp_path: Path) -> None:
    """BERT's pooler, whose output mean_pool does not use."""
    part = part_of("lora_sb").model_copy(update={"target_modules": ("query", "pooler.dense")})
    model: Any = made(part, "bert", "mean_pool", tmp_path)
    found = FedSb().extras_before(model, Three(), list(model.trainable), 0, torch.Generator())  # type: ignore[arg-type]
    used = {name.rpartition(".")[2]: bool(value.any()) for name, value in found.items()}
    assert used == {"query": True, "dense": False} and len(found) == 4


@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        ("none", "needs sharing 'all' or 'body', found 'none'"),
        ("gal", "needs sharing 'all' or 'body', found 'gal'"),
        ({"kind": "body", "last_blocks": 1}, "a weight without factors never learns; set method.sharing=all"),
    ],
)
def test_fed_sb_s_factors_are_not_left_at_zero(sharing: Any, message: str, tiny_settings: Any, tmp_path: Path) -> None:
    method = {"name": "m", "peft": "lora_sb", "aggregator": "fed_sb", "sharing": sharing}
    with pytest.raises(ConfigError, match=message):
        after_rounds(0, tiny_settings(method), tmp_path)


@pytest.mark.parametrize("step", ["sign", "gradient"])
def test_fed_sb_starts_at_the_best_approximation_of_one_step(step: Any) -> None:
    """B R A is the SVD of -eta sign(sum_k w_k G_k) cut to rank 2, with w = (1/4, 3/4) and eta = 0.5."""
    shared = {"x" + A: torch.zeros(2, 5), "x" + B: torch.zeros(4, 2), "x" + CORE: torch.zeros(2, 2)}
    rng = torch.Generator().manual_seed(0)
    gradients = [torch.randn(4, 5, generator=rng) for _ in range(2)]
    updates = [
        DeviceUpdate(k, n, 1, {"x" + CORE: torch.zeros(2, 2)}, {"gradient/x": g}, learning_rate=0.5)
        for k, (n, g) in enumerate(zip((1, 3), gradients, strict=True))
    ]
    aggregator = FedSb(step=step)
    found, state = aggregator.combine(aggregator.start(shared, 9), updates)
    mean = gradients[0] / 4 + gradients[1] * 3 / 4
    u, s, v = torch.linalg.svd(-0.5 * (mean.sign() if step == "sign" else mean))
    torch.testing.assert_close(found["x" + B] @ found["x" + CORE] @ found["x" + A], u[:, :2] * s[:2] @ v[:2])
    torch.testing.assert_close(found["x" + CORE], torch.diag(s[:2]))
    torch.testing.assert_close(found["x" + A] @ found["x" + A].T, torch.eye(2))
    later = [DeviceUpdate(k, n, 1, {"x" + CORE: torch.full((2, 2), float(n))}) for k, n in enumerate((1, 3))]
    step_, _ = aggregator.combine(state, later)
    assert set(step_) == {"x" + CORE} and (step_["x" + CORE] == (1 * 1 + 3 * 3) / 4).all()


def test_fed_sb_s_mean_is_the_mean_of_the_full_updates(tiny_settings: Any, tmp_path: Path) -> None:
    """W + (alpha / r) B R A with alpha / r = 1, after real rounds: to rounding."""
    fleet, worker_spec, reports = after_rounds(2, tiny_settings("fed-sb"), tmp_path)
    part: Any = worker_spec.job.method.peft
    model, values = fleet._worker.model, fleet.adapter()
    cores = [name for name in values if name.endswith(CORE)]
    assert cores and all(values[name].any() for name in cores)
    rng = torch.Generator().manual_seed(3)
    deltas = [{name: torch.randn(values[name].shape, generator=rng) for name in cores} for _ in range(3)]
    devices = [products(part, values | add(delta, values), model) for delta in deltas]
    updates = [DeviceUpdate(k, k + 1, 1, delta) for k, delta in enumerate(deltas)]
    step, _ = FedSb().combine({"has_factors": torch.tensor(True)}, updates)
    exact = weighted_mean((k + 1, one) for k, one in enumerate(devices))
    torch.testing.assert_close(products(part, values | add(step, values), model), exact, rtol=1e-5, atol=1e-5)
    first, later = reports[0], reports[-1]
    own = num_bytes({n: v for n, v in values.items() if n.endswith(CORE) or n.startswith("head.")})
    weights = sum(4 * out * inside for out, inside in model.adapter_config["sizes"].values())
    assert (first.bytes_up, later.bytes_up) == (own + weights, own)
    frozen = num_bytes({n: v for n, v in values.items() if n.endswith((A, B))})
    assert (first.bytes_down, later.bytes_down) == (own, own + frozen)
