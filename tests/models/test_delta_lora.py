"""Delta-LoRA against the paper's own update, which writes to the weights in each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft_models import batch, made

from fibec_ray.models.torch_model import TorchModel
from fibec_ray.parts.peft.delta_lora import DeltaLora
from fibec_ray.parts.peft.lora import Lora

SETTINGS: dict[str, Any] = {"r": 2, "alpha": 4}
RATE, RATIO = 0.3, 1.5


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def steps(model: TorchModel, move: bool, count: int = 4) -> list[float]:
    """Losses on the way of plain gradient descent. move: W += lambda s (B A - B' A') after each step."""
    layers = [layer for layer in model.peft_model.modules() if hasattr(layer, "lora_A")]
    for layer in layers:
        layer.base_layer.weight.data = layer.base_layer.weight.data.clone()
    model.train(True)
    losses = []
    for _ in range(count):
        before = [product(layer) for layer in layers]
        loss = model.forward(batch()).losses.mean()
        grads = torch.autograd.grad(loss, list(model.trainable.values()))
        for p, grad in zip(model.trainable.values(), grads, strict=True):
            p.data -= RATE * grad
        if move:
            for layer, old in zip(layers, before, strict=True):
                layer.base_layer.weight.data += RATIO * 2 * (product(layer) - old)
        losses.append(float(loss.detach()))
    return losses


def product(layer: Any) -> torch.Tensor:
    return (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()


@pytest.mark.parametrize(("family", "head"), [("bert", "mean_pool"), ("llama", "causal_lm")])
def test_it_is_the_papers_update(family: str, head: str, cache: Path) -> None:
    """s = 2. Four steps: the same losses and the same A and B as with weights that are written to."""
    ours, theirs = (made(part, family, head, cache) for part in (DeltaLora(**SETTINGS, ratio=RATIO), Lora(**SETTINGS)))
    assert steps(ours, move=False) == pytest.approx(steps(theirs, move=True), rel=1e-5)
    plain = made(Lora(**SETTINGS), family, head, cache)
    steps(plain, move=False)
    assert distance(ours, theirs) < 1e-5 < 1e-3 < distance(ours, plain)


def distance(one: TorchModel, other: TorchModel) -> float:
    left, right = one.read(), other.read()
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).norm() / right[name].norm()) for name in left)


def test_a_ratio_of_zero_is_lora(cache: Path) -> None:
    ours, lora = (made(part, "bert", "mean_pool", cache) for part in (DeltaLora(**SETTINGS, ratio=0), Lora(**SETTINGS)))
    assert steps(ours, move=False) == steps(lora, move=False)
    assert ours.adapter_config["lora_alpha"] == lora.adapter_config["lora_alpha"] == 4


def test_the_saved_adapter_has_what_the_weights_moved_by(cache: Path) -> None:
    assert made(DeltaLora(**SETTINGS, ratio=RATIO), "bert", "mean_pool", cache).adapter_config["lora_alpha"] == 10


def test_dora_is_refused() -> None:
    with pytest.raises(ValueError, match="use_dora needs fixed columns of W, but W moves here"):
        DeltaLora(use_dora=True)
