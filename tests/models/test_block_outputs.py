"""Hidden states are what each block gives out itself, before any final norm, whatever the family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from batches import row
from conftest import classes
from peft_models import FAMILIES, batch, stirred
from torch import Tensor

from fibec_ray.model_types import LaneBatch
from fibec_ray.models.backbone import prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.peft.prefix import Prefix
from fibec_ray.parts.peft.virtual import Prompt

MORE: dict[str, dict[str, Any]] = {
    "xlnet": {"vocab_size": 50, "d_model": 32, "n_layer": 3, "n_head": 2, "d_inner": 64},
    "phi": FAMILIES["bert"],
    "gemma": {**FAMILIES["llama"], "head_dim": 16},
}
BLOCKS = {
    "bert": "encoder.layer", "distilbert": "transformer.layer", "deberta-v2": "encoder.layer", "modernbert": "layers",
    "mpnet": "encoder.layer", "albert": "encoder.albert_layer_groups", "xlnet": "layer", "gpt2": "h", "bloom": "h",
    "opt": "decoder.layers", "llama": "layers", "mistral": "layers", "qwen2": "layers", "phi": "layers",
    "gemma": "layers",
}  # fmt: skip
"""Where a family keeps its blocks. ALBERT's one runs three times."""
NORMED = ("gpt2", "bloom", "opt", "llama", "mistral", "qwen2", "phi", "gemma", "modernbert")
"""Families with a norm after the last block."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def made(family: str, cache: Path, head: Any = "mean_pool", part: Peft | None = None, **more: Any) -> TorchModel:
    config = {"model_type": family, **(FAMILIES | MORE)[family]}
    spec = Backbone(init="random", config=config, tokenizer="minilm", head=head, **more)
    part = part or Lora(r=2, target_modules="all-linear")
    answers = classes(3, (7, 8, 9) if "_lm" in head else None)
    return stirred(TorchModel(ModelSpec(spec, part, answers, 0), prepare(spec, 0, 3, cache)))


def hooked(model: TorchModel, family: str, work: Any) -> tuple[Any, list[Tensor]]:
    """What the work gives, and what the blocks gave out meanwhile."""
    body = model._base if model._spec.head == "mean_pool" else getattr(model._base, model._base.base_model_prefix)
    seen: list[Tensor] = []
    blocks = body.get_submodule(BLOCKS[family])
    hooks = [b.register_forward_hook(lambda _, __, y: seen.append(y[0] if isinstance(y, tuple) else y)) for b in blocks]
    try:
        return work(), [y.transpose(0, 1) for y in seen] if family == "xlnet" else seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("family", BLOCKS)
@torch.no_grad()
def test_states_are_the_blocks_own(family: str, cache: Path) -> None:
    model = made(family, cache)
    out, seen = hooked(model, family, lambda: model.forward(batch(), hidden=True))
    assert len(seen) == len(out.hidden) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(out.hidden, seen, strict=True))
    assert torch.equal(out.last, seen[-1]) == (family not in NORMED)
    real = batch().inputs["attention_mask"].unsqueeze(2)
    own = model.read()
    means = (out.last * real).sum(1) / real.sum(1)
    torch.testing.assert_close(out.scores, means @ own["head.weight"].T + own["head.bias"])


@pytest.mark.parametrize("head", ["model", "causal_lm"])
@torch.no_grad()
def test_whatever_the_head(head: str, cache: Path) -> None:
    model = made("gpt2", cache, head)
    out, seen = hooked(model, "gpt2", lambda: model.forward(batch(), hidden=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(out.hidden, seen, strict=True))


@pytest.mark.parametrize("part", [Prompt(num_tokens=2), Prefix(num_tokens=2)], ids=["prompt", "prefix"])
@torch.no_grad()
def test_without_virtual_tokens(part: Peft, cache: Path) -> None:
    model = made("llama", cache, part=part)
    out, seen = hooked(model, "llama", lambda: model.forward(batch(), hidden=True))
    assert [states.shape for states in out.hidden] == [(3, 7, 32)] * 3
    assert all(torch.equal(ours, theirs[:, -7:]) for ours, theirs in zip(out.hidden, seen, strict=True))


@torch.no_grad()
def test_of_several_devices_at_once(cache: Path) -> None:
    model = made("llama", cache)
    lanes = [LaneBatch(model.read(), row(batch(), i)) for i in range(3)]
    together, _ = model.together(lanes, hidden=True)
    for lane, out in zip(lanes, together, strict=True):
        alone = model.forward(lane.batch, hidden=True)
        torch.testing.assert_close(out.last, alone.last)
        for ours, theirs in zip(out.hidden, alone.hidden, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("more", [{"checkpointing": True}, {"backend": "stream"}], ids=["checkpointing", "stream"])
def test_however_the_base_is_held_and_with_the_same_gradients(more: dict[str, Any], cache: Path) -> None:
    """Blocks that are computed again in the backward pass add nothing to what the forward pass gave."""
    found = []
    for model in (made("llama", cache), made("llama", cache, **more)):
        model.train(True)
        out, _ = model.per_sample_grads(batch(), hidden=True)
        names = [name for name in model.trainable if ".lora_" in name]
        value = sum(states.square().sum() for states in out.hidden)
        grads = model.grad(value, [model.trainable[name] for name in names])
        assert len(out.hidden) == 3
        found.append([*out.hidden, *grads])
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, atol=1e-4, rtol=1e-4)
