"""Prompts and prefixes: where they enter, what they cost, and what they need of a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from batches import row
from peft import PeftModel
from peft_models import AUTO, batch, made, part_of, ready, saved, scores_of, stirred

from fibec_ray.config.load import check
from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import prepare
from fibec_ray.parts.mask.by_neuron import matrix_kind
from fibec_ray.parts.peft.prefix import Prefix
from fibec_ray.parts.peft.virtual import Prompt
from fibec_ray.runs.simulation import prepare as prepare_run

pytestmark = pytest.mark.filterwarnings("ignore:The PEFT config's")
EACH = pytest.mark.parametrize("name", ["prompt", "prefix", "prefix with projection"])
MORE = pytest.mark.parametrize(
    ("family", "head"), [("roberta", "masked_lm"), ("roberta", "mean_pool"), ("gpt2", "causal_lm")]
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@EACH
@MORE
@torch.no_grad()
def test_positions_are_counted_as_peft_counts_them(
    name: str, family: str, head: str, cache: Path, tmp_path: Path
) -> None:
    """RoBERTa counts from its pad id and has two ways to do it; GPT-2 goes on behind a prefix."""
    model, data = ready(name, family, head, cache), batch()
    base = getattr(transformers, AUTO[head]).from_pretrained(prepare(model._spec, 0, 3, cache))
    whole = PeftModel.from_pretrained(base, saved(model, part_of(name), tmp_path)).eval()
    found = torch.cat([scores_of(whole, model, head, row(data, i)) for i in range(3)])
    out = model.forward(data)
    torch.testing.assert_close(found, out.scores)
    torch.testing.assert_close(model.forward(data, embeds=model.embed(data)).losses, out.losses)


@torch.no_grad()
def test_a_prompt_of_words_is_those_words(cache: Path) -> None:
    """A table that holds the embeddings of four tokens does what the tokens do, written before the sample's own."""
    model, data = made(part_of("prompt"), "llama", "mean_pool", cache), batch()
    words = torch.tensor([11, 12, 13, 14])
    table = model.peft_model.get_input_embeddings().weight[words]
    model.load({"prompt_encoder.embedding.weight": table})
    model.train(False)
    base = transformers.AutoModel.from_pretrained(prepare(model._spec, 0, 3, cache))
    for i in range(3):
        sample = row(data, i)
        whole = base(torch.cat([words.unsqueeze(0), sample.inputs["input_ids"]], dim=1)).last_hidden_state[:, 4:]
        torch.testing.assert_close(model.forward(sample, hidden=True).last, whole)


@pytest.mark.parametrize("init", ["vocabulary", "random"])
def test_a_prompt_starts_as_words_or_as_noise(init: Any, cache: Path) -> None:
    model = made(Prompt(num_tokens=6, init=init), "bert", "mean_pool", cache)
    table, words = model.read()["prompt_encoder.embedding.weight"], model.peft_model.get_input_embeddings().weight
    is_word = [bool((words == entry).all(1).any()) for entry in table]
    assert all(is_word) if init == "vocabulary" else not any(is_word) and 0.8 < float(table.std()) < 1.2


def test_a_prefix_has_one_tensor_for_each_block_that_acts_there_and_above(cache: Path) -> None:
    """m = 4 keys and values: D = 32, or 16 where two heads share one key."""
    for family, width in (("bert", 64), ("llama", 32)):
        model, data = stirred(made(part_of("prefix"), family, "mean_pool", cache)), batch()
        names = [f"prompt_encoder.embedding.layers.{i}.table.weight" for i in range(3)]
        assert [n for n in model.trainable if model.is_adapter(n)] == names
        assert [model.layer_of(n) for n in names] == [0, 1, 2]
        assert {matrix_kind(n) for n in names} == {"table.weight"}, "rows of all blocks compare"
        assert {tuple(model.trainable[n].shape) for n in names} == {(4, width)}
        before = model.forward(data, hidden=True).hidden
        model.load({names[1]: torch.zeros(4, width)})
        after = model.forward(data, hidden=True).hidden
        assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [True, False, False]


def test_a_projected_prefix_belongs_to_no_block(cache: Path) -> None:
    model = made(part_of("prefix with projection"), "bert", "mean_pool", cache)
    adapter = {n: tuple(p.shape) for n, p in model.trainable.items() if model.is_adapter(n)}
    assert {model.layer_of(n) for n in adapter} == {None}
    assert adapter["prompt_encoder.embedding.weight"] == (4, 32)
    assert adapter["prompt_encoder.transform.2.weight"] == (3 * 2 * 32, 8)


def test_a_hidden_size_without_a_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size has an effect only with projection: true"):
        Prefix(hidden_size=8)


def test_flops_have_virtual_tokens_in_them(cache: Path) -> None:
    """As in test_torch_model: 20480 weights in a block with one key head (q, o 1024 each, k, v 512 each, 6144 in the
    feed-forward: 9216), 3 blocks, 2 flops: 55296 for a token that runs, and 384 for each that it may look at.
    """
    tokens = {"prompt": 11, "prefix": 7}  # that run, of each sample
    for name, run in tokens.items():
        model = made(part_of(name), "llama", "mean_pool", cache)
        with torch.no_grad():
            model.forward(batch())
        assert model.work.num_tokens == 3 * run
        assert model.work.flops == 3 * run * (55296 + 384 * 11)


@EACH
def test_too_few_positions_for_samples_and_virtual_tokens(name: str, tiny_settings: Any, tmp_path: Path) -> None:
    backbone = {"config": {**tiny_settings()["backbone"]["config"], "max_position_embeddings": 19}}
    settings = tiny_settings({"name": "x", "peft": part_of(name).model_dump()}, backbone=backbone)
    match = r"16 tokens and 4 virtual ones \(method.peft\), but the backbone has 19 positions; lower one of the two"
    with pytest.raises(ModelError, match=match):
        prepare_run(check(settings, "test"), tmp_path)


def test_a_backbone_that_takes_no_prefix_says_so(cache: Path) -> None:
    with pytest.raises(
        ModelError, match="method.peft: prefix passes keys .* DistilBertModel takes none; choose prompt"
    ):
        made(part_of("prefix"), "distilbert", "mean_pool", cache)
