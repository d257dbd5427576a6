"""Late prompt tuning against the base's own blocks: nothing below the layer, prompts from it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from batches import row, tokens
from peft_models import batch, made, stirred

from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import open_base, prepare
from fibec_ray.parts.peft.lpt import Lpt

M = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("instance", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "opt", "llama"])
@torch.no_grad()
def test_below_the_layer_are_the_bases_own_states(
    family: str, layer: int, instance: bool, attention: Any, cache: Path
) -> None:
    """And from there on others, padded or not."""
    part = Lpt(num_tokens=M, layer=layer, instance=instance)
    model, data = stirred(made(part, family, "mean_pool", cache, attention=attention)), batch()
    base = open_base(model._spec, prepare(model._spec, 0, 3, cache)).eval()
    for i in range(3):
        sample = row(data, i)
        plain = base(**tokens(sample), output_hidden_states=True).hidden_states
        for found in (
            model.forward(data, hidden=True).hidden,
            model.forward(data, embeds=model.embed(data), hidden=True).hidden,
            model.forward(sample, hidden=True).hidden,
        ):
            at = min(i, len(found[0]) - 1)
            same = [torch.allclose(h[at, : p.shape[1]], p[0], atol=1e-5) for h, p in zip(found, plain[1:], strict=True)]
            assert same == [block < layer for block in range(3)]


@pytest.mark.parametrize("layer", [1, 2])
@torch.no_grad()
def test_from_the_layer_on_prompts_are_tokens_like_others(layer: int, cache: Path) -> None:
    """By hand, one BERT block after another: prompts in front of the states that come into block `layer`."""
    model, data = stirred(made(Lpt(num_tokens=M, layer=layer, bottleneck=3), "bert", "mean_pool", cache)), batch()
    base: Any = open_base(model._spec, prepare(model._spec, 0, 3, cache)).eval()
    for i in range(3):
        sample = row(data, i)
        states = base(sample.inputs["input_ids"], output_hidden_states=True).hidden_states[layer]
        prompts = model.peft_model["prompts"](states, sample.inputs["attention_mask"])
        assert prompts.shape == (1, M, 32)
        states = torch.cat([prompts, states], dim=1)
        for block in base.encoder.layer[layer:]:
            states = block(states)
        torch.testing.assert_close(model.forward(sample, hidden=True).hidden[-1], states[:, M:])


@torch.no_grad()
def test_prompts_of_a_decoder_are_seen_by_all_tokens_and_see_no_token(cache: Path) -> None:
    """Rotary positions count differences alone: prompts at -4 .. -1 before tokens at 0, 1, .. are 0 .. 3 before 4 .."""
    model, data = stirred(made(Lpt(num_tokens=M, layer=1, instance=False), "llama", "mean_pool", cache)), batch()
    base: Any = open_base(model._spec, prepare(model._spec, 0, 3, cache)).eval()
    sample = row(data, 0)
    states = base(sample.inputs["input_ids"], output_hidden_states=True).hidden_states[1]
    states = torch.cat([model.read()["prompts.table.weight"].unsqueeze(0), states], dim=1)
    places = torch.arange(M + 7).unsqueeze(0)
    turns, sees = base.rotary_emb(states, places), torch.ones(1, 1, M + 7, M + 7, dtype=torch.bool).tril()
    for block in base.layers[1:]:
        states = block(states, attention_mask=sees, position_embeddings=turns, position_ids=places)
    torch.testing.assert_close(model.forward(sample, hidden=True).last, base.norm(states)[:, M:])


def test_the_middle_is_the_default_and_a_table_is_all_that_is_needed(cache: Path) -> None:
    model = made(Lpt(num_tokens=M, instance=False), "bert", "mean_pool", cache)
    assert {n: tuple(p.shape) for n, p in model.trainable.items() if model.is_adapter(n)} == {
        "prompts.table.weight": (M, 32)
    }
    stirred(model)
    with torch.no_grad():
        before = model.forward(batch(), hidden=True).hidden
        model.load({"prompts.table.weight": torch.ones(M, 32)})
        after = model.forward(batch(), hidden=True).hidden
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [True, False, False]


def test_what_does_not_fit_says_so(cache: Path) -> None:
    with pytest.raises(ModelError, match="method.peft.layer: 3, but the backbone has blocks 0 to 2; lower it"):
        made(Lpt(layer=3), "bert", "mean_pool", cache)
    with pytest.raises(ModelError, match="lpt needs to set position_ids, but BloomModel does not take it; choose"):
        made(Lpt(), "bloom", "mean_pool", cache, attention="eager")
    with pytest.raises(ModelError, match="method.peft: AlbertModel does not keep its 3 blocks in a list; choose lora"):
        made(Lpt(), "albert", "mean_pool", cache)
    with pytest.raises(ValueError, match="bottleneck has an effect only with instance: true"):
        Lpt(instance=False, bottleneck=4)
