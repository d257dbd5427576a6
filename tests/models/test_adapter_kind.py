"""Houlsby's adapters: where they are, and that they start as nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from batches import tokens
from peft_models import batch, made, stirred

from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import open_base, prepare
from fibec_ray.parts.peft.adapter import Adapter


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama"])
@torch.no_grad()
def test_two_in_each_block_that_start_as_nothing(family: str, cache: Path) -> None:
    """2 L (2 d b + d + b) entries; the outputs of the blocks are the base's."""
    model, data = made(Adapter(bottleneck=5), family, "mean_pool", cache), batch()
    adapter = {name: p for name, p in model.trainable.items() if model.is_adapter(name)}
    assert sum(p.numel() for p in adapter.values()) == 2 * 3 * (2 * 32 * 5 + 32 + 5)
    assert [sum(model.layer_of(name) == i for name in adapter) for i in range(3)] == [8, 8, 8]
    base = open_base(model._spec, prepare(model._spec, 0, 3, cache)).eval()
    model.train(False)
    out = base(**tokens(data)).last_hidden_state
    torch.testing.assert_close(model.forward(data, hidden=True).last, out)


@torch.no_grad()
def test_it_adds_up_gelu_down_before_the_residual(cache: Path) -> None:
    """By hand, for the feed-forward of the first block."""
    model, data = stirred(made(Adapter(bottleneck=5), "bert", "mean_pool", cache)), batch()
    layer = model.peft_model.encoder.layer[0]
    seen = {}
    layer.output.register_forward_hook(lambda m, args, y: seen.update(inside=args[0], residual=args[1], out=y))
    model.forward(data)
    dense, names = layer.output.dense, "encoder.layer.0.output.dense.adapter"
    h = seen["inside"] @ dense.weight.T + dense.bias
    own = model.read()
    down = h @ own[f"{names}.down.weight"].T + own[f"{names}.down.bias"]
    h = h + torch.nn.functional.gelu(down) @ own[f"{names}.up.weight"].T + own[f"{names}.up.bias"]
    torch.testing.assert_close(seen["out"], layer.output.LayerNorm(h + seen["residual"]))


def test_other_targets(cache: Path) -> None:
    model = made(Adapter(bottleneck=2, target_modules=("intermediate.dense",)), "bert", "mean_pool", cache)
    weights = {name for name in model.trainable if name.endswith("up.weight")}
    assert weights == {f"encoder.layer.{i}.intermediate.dense.adapter.up.weight" for i in range(3)}
    assert model.trainable["encoder.layer.0.intermediate.dense.adapter.up.weight"].shape == (64, 2)


def test_targets_that_are_not_there(cache: Path) -> None:
    with pytest.raises(ModelError, match="method.peft.target_modules: a BertLayer has none of these; .* such as dense"):
        made(Adapter(target_modules=("down_proj",)), "bert", "mean_pool", cache)
