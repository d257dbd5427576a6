"""Networks from scratch: the values they compute, what their tensors are called, and what they cost, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import VALUES, classes
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.data.dense import DenseSet
from fibec_ray.data.examples import Points
from fibec_ray.errors import ModelError
from fibec_ray.likelihoods import Categorical, Normal
from fibec_ray.model_types import Batch, Work
from fibec_ray.models.net_model import NetModel
from fibec_ray.models.nets import Cnn, Mlp, Net
from fibec_ray.tensors import digest

IMAGE = (1, 8, 8)


def made(spec: Net | None = None, shape: tuple[int, ...] = IMAGE, num_scores: int = 10, seed: int = 0) -> NetModel:
    return NetModel(spec or Mlp(hidden=(6, 5)), shape, VALUES if num_scores == 1 else classes(num_scores), seed)


def batch(shape: tuple[int, ...] = IMAGE, values: bool = False) -> Batch:
    draws = np.random.default_rng(0)
    own = draws.normal(size=4).astype(np.float32) if values else None
    points = Points(draws.normal(size=(4, *shape)).astype(np.float32), np.array([3, 0, 9, 3]), own)
    return DenseSet.of(points).shard(np.arange(4)).batch(torch.arange(4))


def weights(model: NetModel, name: str) -> tuple[Tensor, Tensor]:
    return model.trainable[f"{name}.weight"], model.trainable[f"{name}.bias"]


# --- what it computes


def test_an_mlp_by_its_formula() -> None:
    model, data = made(), batch()
    x = data.inputs["features"].flatten(1)
    for name in ("layers.0", "layers.1"):
        x = torch.tanh(F.linear(x, *weights(model, name)))
    out = model.forward(data)
    torch.testing.assert_close(out.scores, F.linear(x, *weights(model, "output")))
    torch.testing.assert_close(out.losses, F.cross_entropy(out.scores, data.labels, reduction="none"))
    assert isinstance(out.likelihood, Categorical) and torch.equal(out.predicted, out.scores.argmax(1))


def test_a_cnn_by_its_formula() -> None:
    """8 x 8 -> 4 x 4 -> 2 x 2 of 3 channels: the output layer sees 12 numbers."""
    model, data = made(Cnn(channels=(2, 3))), batch()
    x = data.inputs["features"]
    for name in ("layers.0", "layers.1"):
        x = F.max_pool2d(F.conv2d(x, *weights(model, name), padding=1).relu(), 2)
    assert x.shape == (4, 3, 2, 2)
    torch.testing.assert_close(model.forward(data).scores, F.linear(x.flatten(1), *weights(model, "output")))


def test_a_regression_is_half_the_squared_error_of_its_one_score() -> None:
    model, data = made(Mlp(hidden=()), (3,), 1), batch((3,), values=True)
    out = model.forward(data)
    weight, bias = weights(model, "output")
    predicted = data.inputs["features"] @ weight[0] + bias
    torch.testing.assert_close(out.predicted, predicted)
    torch.testing.assert_close(out.losses, (predicted - data.labels).square() / 2)
    assert isinstance(out.likelihood, Normal) and out.scores.shape == (4, 1)


def test_a_sample_is_its_own_one_token() -> None:
    """What layer sensitivity relies on: embeddings in place of samples, and the output of each layer."""
    for spec, sizes in ((Mlp(hidden=(6, 5)), [6, 5]), (Cnn(channels=(2, 3)), [2 * 16, 3 * 4])):
        model, data = made(spec), batch()
        embeds = model.embed(data)
        assert embeds.shape == (4, 1, 64)
        out = model.forward(data, embeds=embeds, hidden=True)
        assert torch.equal(out.scores, model.forward(data).scores) and model.forward(data).hidden == ()
        assert [tuple(h.shape) for h in out.hidden] == [(4, 1, size) for size in sizes]
        assert not torch.equal(model.forward(data, embeds=2 * embeds).scores, out.scores)


# --- layers and parameters


@pytest.mark.parametrize("spec", [Mlp(hidden=(6, 5)), Cnn(channels=(2, 3))], ids=["mlp", "cnn"])
def test_weight_layers_are_blocks_and_the_output_layer_is_the_head(spec: Net) -> None:
    model = made(spec)
    layers = {name: model.layer_of(name) for name in model.trainable}
    assert layers == {
        "layers.0.weight": 0, "layers.0.bias": 0, "layers.1.weight": 1, "layers.1.bias": 1,
        "output.weight": None, "output.bias": None,
    }  # fmt: skip
    assert model.num_layers == 2 and all(model.is_adapter(name) for name in layers)
    assert set(model.holders) == {"layers.0", "layers.1", "output"}


def test_a_linear_model_is_its_head() -> None:
    model = made(Mlp(hidden=()), (3,), 1)
    assert list(model.trainable) == ["output.weight", "output.bias"] and model.num_layers == 0


def test_the_seed_alone_decides_the_initial_values() -> None:
    before = torch.random.get_rng_state()
    one, again, other = (digest(made(seed=seed).read()) for seed in (3, 3, 4))
    assert one == again != other and torch.equal(torch.random.get_rng_state(), before)


def test_what_is_loaded_is_read() -> None:
    model = made()
    values = {name: value + 1 for name, value in model.read().items()}
    model.load(values)
    assert digest(model.read()) == digest(values)
    assert list(model.read(["output.bias"])) == ["output.bias"]
    model.read()["output.bias"].zero_()  # a copy
    assert digest(model.read()) == digest(values)


def test_the_saved_config_says_how_to_build_it_again() -> None:
    model = made(Cnn(channels=(2, 3)))
    assert model.adapter_config == {
        "kind": "cnn", "channels": [2, 3], "activation": "relu", "input_shape": [1, 8, 8], "num_scores": 10
    }  # fmt: skip


# --- what it costs


def test_flops_by_hand() -> None:
    """Every weight twice for each place: 64 x 6, 6 x 5 and 5 x 10; a convolution at 8 x 8 and at 4 x 4 places.

    A backward pass costs twice as much as the forward one.
    """
    for spec, each in (
        (Mlp(hidden=(6, 5)), 2 * (64 * 6 + 6 * 5 + 5 * 10)),
        (Cnn(channels=(2, 3)), 2 * (2 * 9 * 64 + 2 * 3 * 9 * 16 + 12 * 10)),
    ):
        model, data = made(spec), batch()
        with torch.no_grad():
            model.forward(data)
        assert model.work == Work(4 * each, num_tokens=4)
        model.forward(data)
        assert model.work == Work(4 * 4 * each, num_tokens=8, backward_flops=4 * 2 * each)


# --- refused


def test_a_cnn_needs_images_that_it_can_halve() -> None:
    with pytest.raises(ModelError, match="backbone: cnn needs images, but this task has none"):
        Cnn().check_shape((2,))
    with pytest.raises(ModelError, match="backbone.channels: 4 convolutions halve images of 8 x 8 to nothing"):
        Cnn(channels=(2, 2, 2, 2)).check_shape(IMAGE)
    Cnn(channels=(2, 2, 2)).check_shape(IMAGE)
    Mlp().check_shape((2,))


@pytest.mark.parametrize(
    ("cls", "settings", "says"),
    [
        (Mlp, {"hidden": (), "activation": "relu"}, "no effect without hidden layers"),
        (Mlp, {"hidden": (0,)}, "greater than 0"),
        (Mlp, {"channels": (3,)}, "Extra inputs"),
        (Cnn, {"channels": ()}, "at least 1"),
    ],
)
def test_settings_that_make_no_network_are_refused(cls: type[Net], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        cls(**settings)
