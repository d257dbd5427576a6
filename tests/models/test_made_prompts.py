"""Prompts that are made for each sample: IDPG and ATTEMPT, by hand; and how such adapters are loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from batches import tokens
from peft_models import batch, made, part_of, saved, stirred
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.errors import ModelError
from fibec_ray.model_types import Batch
from fibec_ray.models.backbone import open_base, prepare
from fibec_ray.parts.peft.attempt import Attempt
from fibec_ray.parts.peft.generated import Idpg
from fibec_ray.parts.peft.load import load_adapter
from fibec_ray.parts.peft.virtual import Prompt

M = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def prompts(model: Any, data: Batch) -> Tensor:
    """What stands before each sample, (B, M, H)."""
    return model.peft_model["prompts"](model.embed(data), data.inputs["attention_mask"])


@torch.no_grad()
def test_idpg_starts_as_prompt_tuning_and_then_depends_on_the_sample(cache: Path) -> None:
    model, data = made(Idpg(num_tokens=M, bottleneck=3), "bert", "mean_pool", cache), batch()
    model.train(False)
    own = model.read()
    table = own["prompts.up.bias"].view(M, 32)
    words = model.peft_model["base"].get_input_embeddings().weight
    assert all(bool((words == entry).all(1).any()) for entry in table) and not own["prompts.up.weight"].any()
    plain = made(Prompt(num_tokens=M), "bert", "mean_pool", cache)
    plain.load({"prompt_encoder.embedding.weight": table, **{n: own[n] for n in ("head.weight", "head.bias")}})
    plain.train(False)
    torch.testing.assert_close(model.forward(data).scores, plain.forward(data).scores)
    first, second, _ = prompts(stirred(model), data)
    assert not torch.allclose(first, second)


@torch.no_grad()
def test_idpg_by_hand(cache: Path) -> None:
    """W2 relu(W1 x + b1) + b2, x the mean over a sample's own tokens."""
    model, data = stirred(made(Idpg(num_tokens=M, bottleneck=3), "bert", "mean_pool", cache)), batch()
    own = {name.removeprefix("prompts."): value for name, value in model.read().items()}
    for i in range(3):
        mean = model.embed(data)[i, : data.inputs["attention_mask"][i].sum()].mean(0)
        inner = F.relu(own["down.weight"] @ mean + own["down.bias"])
        by_hand = (own["up.weight"] @ inner + own["up.bias"]).view(M, 32)
        torch.testing.assert_close(prompts(model, data)[i], by_hand)


@torch.no_grad()
def test_attempt_by_hand(cache: Path) -> None:
    """P + sum_j a_j P_j over two sources and P itself; a = softmax_j(max P_j . g(max x) / (e H))."""
    model, data = stirred(made(Attempt(num_tokens=M, num_sources=2, bottleneck=3), "bert", "mean_pool", cache)), batch()
    model.load({"prompts.norm.weight": 50 * torch.ones(32)})  # a sharp choice; it starts nearly even
    own = {name.removeprefix("prompts."): value for name, value in model.read().items()}
    mine, sources = own["table.weight"], model.peft_model["prompts"].sources
    for i in range(3):
        largest = model.embed(data)[i, : data.inputs["attention_mask"][i].sum()].amax(0)
        inner = own["up.weight"] @ F.silu(own["down.weight"] @ largest)
        query = F.layer_norm(inner, (32,), own["norm.weight"], own["norm.bias"])
        every = [*sources, mine]
        a = torch.stack([each.amax(0) @ query / (2.718281828 * 32) for each in every]).softmax(0)
        by_hand = mine + sum(weight * each for weight, each in zip(a, every, strict=True))
        torch.testing.assert_close(prompts(model, data)[i], by_hand)
        assert float(a.max() - a.min()) > 0.01


def test_attempt_draws_its_sources_by_a_seed_of_their_own(cache: Path) -> None:
    one, other, third = (
        made(Attempt(num_tokens=M, source_seed=source), "bert", "mean_pool", cache, seed=seed)
        for seed, source in ((0, 0), (1, 0), (0, 1))
    )
    found = [model.peft_model["prompts"].sources for model in (one, other, third)]
    assert found[0].shape == (6, M, 32) and torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(one.read()["prompts.table.weight"], other.read()["prompts.table.weight"])
    assert not any("sources" in name for name in one.trainable)


def test_attempt_takes_sources_from_a_file_and_saves_them_with_the_adapter(cache: Path, tmp_path: Path) -> None:
    file, sources = tmp_path / "tasks.safetensors", torch.randn(3, M, 32)
    save_file({"sources": sources}, file)
    part = Attempt(num_tokens=M, sources=str(file))
    model, data = stirred(made(part, "bert", "mean_pool", cache)), batch()
    assert torch.equal(model.peft_model["prompts"].sources, sources)
    folder = saved(model, part, tmp_path)
    file.unlink()
    whole = load_adapter(open_base(model._spec, prepare(model._spec, 0, 3, cache)), folder)
    out = whole(**tokens(data)).last_hidden_state[:, M:]
    torch.testing.assert_close(out, model.forward(data, hidden=True).last)


def test_sources_that_cannot_be_used(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    with pytest.raises(ModelError, match="method.peft.sources: .*other.safetensors cannot be read"):
        made(Attempt(sources=str(file)), "bert", "mean_pool", cache)
    save_file({"sources": torch.zeros(3, M + 1, 32)}, file)
    with pytest.raises(ModelError, match=r"'sources' in .* has shape \(3, 5, 32\); it must be \(N, 4 from num_tokens"):
        made(Attempt(num_tokens=M, sources=str(file)), "bert", "mean_pool", cache)
    with pytest.raises(ValueError, match="num_sources and source_seed have an effect only without sources"):
        Attempt(sources=str(file), num_sources=2)


def test_what_cannot_be_loaded_says_why(cache: Path, tmp_path: Path) -> None:
    model = made(part_of("adapter"), "bert", "mean_pool", cache)
    folder = saved(model, part_of("adapter"), tmp_path)
    with pytest.raises(ModelError, match=r"does not fit this LlamaModel \(only one of them has .*\)"):
        other = made(part_of("lora"), "llama", "mean_pool", cache)
        load_adapter(open_base(other._spec, prepare(other._spec, 0, 3, cache)), folder)
    with pytest.raises(TypeError, match="missing required keys: {'peft_type'}"):
        peft.PeftConfig.from_pretrained(folder)
    with pytest.raises(ModelError, match="an adapter of the peft library; load it with PeftModel.from_pretrained"):
        load_adapter(open_base(model._spec, prepare(model._spec, 0, 3, cache)), saved(other, part_of("lora"), tmp_path))
