"""The model that devices train, on tiny random models of six families, against plain transformers and peft.

Shapes: 3 samples of 7, 4 and 2 tokens, H = 32, L = 3, V = 50, C = 3.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from batches import of_texts, row, tokens
from conftest import classes
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn import functional as F

from fibec_ray.errors import ModelError
from fibec_ray.model_types import Batch
from fibec_ray.models.backbone import prepare
from fibec_ray.models.lm_head import known_lm_head
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.peft.lora import Lora

quiet_libraries()

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:The PEFT config's", "ignore:Could not find")

BASIC = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
GPT2_WORDS = {"bos_token_id": 2, "eos_token_id": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {**BASIC, "intermediate_size": 64},
    "roberta": {**BASIC, "intermediate_size": 64},
    "distilbert": {"vocab_size": 50, "dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64},
    "gpt2": {"vocab_size": 50, "n_embd": 32, "n_layer": 3, "n_head": 2, **GPT2_WORDS},
    "opt": {**BASIC, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "llama": {**BASIC, "intermediate_size": 64, "num_key_value_heads": 2},
}
ENCODERS, DECODERS = ("bert", "roberta", "distilbert"), ("gpt2", "opt", "llama")
CASES = [
    *((family, head) for family in FAMILIES for head in ("mean_pool", "model")),
    *((family, "masked_lm") for family in ("bert", "roberta")),
    *((family, "causal_lm") for family in DECODERS),
]
EVERY_CASE = pytest.mark.parametrize(("family", "head"), CASES, ids=["-".join(case) for case in CASES])
WORDS = (7, 8, 9)
PAD = 1


def made(family: str, head: str, cache: Path, seed: int = 0, part: Lora | None = None, **changes: Any) -> TorchModel:
    spec = spec_of(family, head, **changes)
    words = WORDS if head.endswith("_lm") else None
    return TorchModel(ModelSpec(spec, part or Lora(), classes(3, words), seed), prepare(spec, 0, 3, cache))


def spec_of(family: str, head: Any, **changes: Any) -> Backbone:
    config = {"model_type": family, **FAMILIES[family]}
    return Backbone(init="random", config=config, tokenizer="minilm", head=head, **changes)


def stirred(model: TorchModel) -> TorchModel:
    """With values as if trained: at the start B is zero and the adapter has no effect."""
    rng = torch.Generator().manual_seed(5)
    model.load({name: 0.3 * torch.randn(value.shape, generator=rng) for name, value in model.read().items()})
    return model


@functools.cache
def ready(family: str, head: str, cache: Path) -> TorchModel:
    """A stirred model in evaluation mode, one for all tests that only look at it."""
    model = stirred(made(family, head, cache))
    model.train(False)
    return model


def batch() -> Batch:
    ids = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([[7], [4], [2]])).long()
    return of_texts(torch.where(mask.bool(), ids, PAD), mask, torch.tensor([0, 2, 1]), mask.sum(1) - 1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def reference(model: TorchModel, family: str, head: str, cache: Path) -> Any:
    """The same base and adapter, from transformers and peft alone."""
    spec = spec_of(family, head)
    name = {
        "mean_pool": "AutoModel",
        "model": "AutoModelForSequenceClassification",
        "masked_lm": "AutoModelForMaskedLM",
        "causal_lm": "AutoModelForCausalLM",
    }[head]
    base = getattr(transformers, name).from_pretrained(prepare(spec, 0, 3, cache))
    base.config.pad_token_id = PAD
    given = {key: value for key, value in model.adapter_config.items() if key != "peft_type"}
    whole = peft.get_peft_model(base, peft.LoraConfig(**given | {"inference_mode": False}))
    values = {n: v for n, v in model.read().items() if not n.startswith("head.")}
    result = set_peft_model_state_dict(whole, values)
    assert not result.unexpected_keys
    return whole.eval()


# --- results


@EVERY_CASE
@torch.no_grad()
def test_losses_are_those_of_transformers(family: str, head: str, cache: Path) -> None:
    """By the long way: logits of the whole vocabulary at every position, pooling in a loop."""
    model, data = ready(family, head, cache), batch()
    found = model.forward(data, hidden=True)
    out = reference(model, family, head, cache)(**tokens(data), output_hidden_states=True)
    scores, targets = torch.empty(0), data.labels
    if head == "mean_pool":
        own = model.read()
        means = [out.last_hidden_state[i, : data.inputs["attention_mask"][i].sum()].mean(0) for i in range(3)]
        logits = scores = torch.stack([own["head.weight"] @ mean + own["head.bias"] for mean in means])
    elif head == "model":
        logits = scores = out.logits
    else:
        logits = torch.stack([out.logits[i, data.inputs["answer_at"][i]] for i in range(3)])
        scores, targets = logits[:, list(WORDS)], torch.tensor(WORDS)[data.labels]
    torch.testing.assert_close(found.scores, scores)
    torch.testing.assert_close(found.losses, F.cross_entropy(logits, targets, reduction="none"))
    assert (found.losses.shape, found.scores.shape) == ((3,), (3, 3))
    assert found.losses.dtype == found.scores.dtype == torch.float32
    assert len(found.hidden) == len(out.hidden_states) - 1 == model.num_layers == 3
    torch.testing.assert_close(found.last, out.hidden_states[-1])
    for ours, theirs in zip(found.hidden[:-1], out.hidden_states[1:-1], strict=True):
        assert ours.shape == (3, 7, 32)
        torch.testing.assert_close(ours, theirs)  # a block's output is what the next one takes in


@EVERY_CASE
@torch.no_grad()
def test_token_embeddings_in_place_of_tokens_change_nothing(family: str, head: str, cache: Path) -> None:
    model, data = ready(family, head, cache), batch()
    embeds = model.embed(data)
    assert embeds.shape == (3, 7, 32)
    torch.testing.assert_close(model.forward(data, embeds=embeds).losses, model.forward(data).losses)


@EVERY_CASE
@torch.no_grad()
def test_padding_changes_nothing(family: str, head: str, cache: Path) -> None:
    model, data = ready(family, head, cache), batch()
    together = model.forward(data)
    alone = [model.forward(row(data, i)) for i in range(3)]
    torch.testing.assert_close(together.losses, torch.cat([out.losses for out in alone]))
    torch.testing.assert_close(together.scores, torch.cat([out.scores for out in alone]))


def test_hidden_states_only_on_request(cache: Path) -> None:
    assert made("bert", "mean_pool", cache).forward(batch()).hidden == ()


# --- names, layers, values


@EVERY_CASE
def test_names_are_those_of_a_saved_adapter(family: str, head: str, cache: Path) -> None:
    model = ready(family, head, cache)
    saved = get_peft_model_state_dict(model.peft_model)
    own = {"head.weight", "head.bias"} if head == "mean_pool" else set()
    assert set(model.trainable) == set(saved) | own
    for name, value in saved.items():
        assert torch.equal(model.read()[name], value)


@EVERY_CASE
def test_every_adapter_tensor_belongs_to_a_block_and_every_head_to_none(family: str, head: str, cache: Path) -> None:
    model = ready(family, head, cache)
    adapters = [name for name in model.trainable if model.is_adapter(name)]
    per_layer = [sum(model.layer_of(name) == layer for name in adapters) for layer in range(3)]
    assert len(adapters) == sum(per_layer) and len(set(per_layer)) == 1
    heads = [name for name in model.trainable if not model.is_adapter(name)]
    assert bool(heads) == (not head.endswith("_lm"))
    assert all(model.layer_of(name) is None for name in heads)


@EVERY_CASE
def test_holders_are_the_modules_of_the_trainable_tensors(family: str, head: str, cache: Path) -> None:
    model = ready(family, head, cache)
    weights = {f"{name}.weight": module.weight for name, module in model.holders.items()}
    assert weights.keys() == {name for name in model.trainable if name.endswith(".weight")}
    assert all(weight is model.trainable[name] for name, weight in weights.items())


@EVERY_CASE
def test_only_trainable_tensors_get_gradients(family: str, head: str, cache: Path) -> None:
    model = ready(family, head, cache)
    model.forward(batch()).losses.sum().backward()
    trainable = {id(value) for value in model.trainable.values()}
    others = [value for value in model.peft_model.parameters() if id(value) not in trainable]
    assert others and all(value.grad is None and not value.requires_grad for value in others)
    assert all(value.grad is not None for value in model.trainable.values())


def test_what_is_loaded_is_read(cache: Path) -> None:
    model, other = made("bert", "mean_pool", cache), made("bert", "mean_pool", cache, seed=1)
    values = stirred(other).read()
    model.load(values)
    found = model.read()
    assert found.keys() == values.keys() == model.trainable.keys()
    assert all(torch.equal(found[name], values[name]) for name in values)
    assert list(model.read(["head.bias"])) == ["head.bias"]


def test_reading_gives_copies_and_loading_takes_copies(cache: Path) -> None:
    model = made("bert", "mean_pool", cache)
    values = model.read()
    values["head.bias"].fill_(1)
    assert not torch.equal(model.read()["head.bias"], values["head.bias"])
    model.load({"head.bias": values["head.bias"]})
    values["head.bias"].fill_(2)
    assert torch.equal(model.read()["head.bias"], torch.ones(3))


@pytest.mark.parametrize("head", ["mean_pool", "model", "masked_lm"])
def test_initial_values_depend_on_the_seed_alone(head: str, cache: Path) -> None:
    torch.manual_seed(1)
    one = made("bert", head, cache).read()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    same, other = made("bert", head, cache).read(), made("bert", head, cache, seed=1).read()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = [name for name in one if "lora_A" in name or name == "head.weight"]
    assert drawn and not any(torch.equal(one[name], other[name]) for name in drawn)
    assert all(not one[name].any() for name in one if "lora_B" in name)


def test_the_adapter_config_is_plain_and_peft_reads_it(cache: Path) -> None:
    config = made("bert", "model", cache, part=Lora(r=4, alpha=2, use_rslora=True)).adapter_config
    assert json.loads(json.dumps(config)) == config
    again = peft.LoraConfig(**{key: value for key, value in config.items() if key != "peft_type"})
    assert (again.r, again.lora_alpha, again.use_rslora, again.task_type) == (4, 2, True, "SEQ_CLS")
    assert sorted(again.target_modules) == ["query", "value"]
    assert config["inference_mode"] is True


@pytest.mark.parametrize("head", ["mean_pool", "masked_lm"])
def test_on_a_bfloat16_base_adapters_and_losses_are_float32(head: str, cache: Path) -> None:
    model = stirred(made("bert", head, cache, dtype="bfloat16"))
    out = model.forward(batch(), hidden=True)
    assert {value.dtype for value in model.trainable.values()} == {torch.float32}
    assert (out.losses.dtype, out.scores.dtype, out.hidden[0].dtype) == (torch.float32, torch.float32, torch.bfloat16)
    whole = stirred(made("bert", head, cache)).forward(batch())
    torch.testing.assert_close(out.losses, whole.losses, rtol=0.05, atol=0.05)


# --- training mode


@torch.no_grad()
def test_without_dropout_two_forwards_in_training_mode_agree(cache: Path) -> None:
    model, data = stirred(made("bert", "mean_pool", cache)), batch()
    model.train(True)
    assert torch.equal(model.forward(data).losses, model.forward(data).losses)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"dropout": True}, {"part": Lora(dropout=0.5)}], ids=["base", "adapter"])
def test_dropout_acts_in_training_mode_only(changes: dict[str, Any], cache: Path) -> None:
    model, data = stirred(made("bert", "mean_pool", cache, **changes)), batch()
    still = stirred(made("bert", "mean_pool", cache)).forward(data).losses
    model.train(True)
    assert not torch.equal(model.forward(data).losses, model.forward(data).losses)
    model.train(False)
    torch.testing.assert_close(model.forward(data).losses, still)


# --- cost


@pytest.mark.parametrize("head", ["mean_pool", "causal_lm"])
def test_flops_are_those_of_the_blocks(head: str, cache: Path) -> None:
    """Llama, by hand. A block has q, k, v, o of 32 x 32 and gate, up, down of 32 x 64: 4 * 1024 + 3 * 2048 = 10240
    weights, 3 blocks 30720, and 2 flops each: 61440 for a token. Attention: q k^T and its product with v take
    2 * 2 * 32 flops for a token and each of the 7 that it may look at: 896, in 3 blocks 2688. The adapter, the head and
    the one answer position's vocabulary are left out.
    """
    model, data = made("llama", head, cache), batch()
    with torch.no_grad():
        model.forward(data)
    assert model.work.flops == 21 * (61440 + 2688) == 1346688
    assert model.work.num_tokens == 21
    model.forward(data)  # with a backward to come, which costs as much again
    assert model.work.flops == 3 * 1346688
    assert model.work.num_tokens == 42


def test_gpt2_weights_are_counted_though_they_are_no_linears(cache: Path) -> None:
    """c_attn 32 x 96, c_proj 32 x 32, c_fc 32 x 128 and c_proj 128 x 32: 12288 in a block."""
    model = made("gpt2", "causal_lm", cache)
    with torch.no_grad():
        model.forward(row(batch(), 1))
    assert model.work.flops == 4 * (2 * 3 * 12288 + 4 * 3 * 32 * 4)


# --- refused


@pytest.mark.parametrize("targets", [("queri",), ("q_proj", "v_proj")])
def test_target_modules_that_are_not_there(targets: tuple[str, ...], cache: Path) -> None:
    with pytest.raises(
        ModelError, match="method.peft.target_modules: .*name Linears of this backbone, such as"
    ) as caught:
        made("bert", "mean_pool", cache, part=Lora(target_modules=targets))
    assert "key" in str(caught.value) and "query" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_language_model_head_under_an_unknown_name_is_run_by_the_whole_model(cache: Path) -> None:
    model, data = ready("distilbert", "masked_lm", cache), batch()
    logits = reference(model, "distilbert", "masked_lm", cache)(**tokens(data)).logits
    at_answers = logits[torch.arange(3), data.inputs["answer_at"]]
    torch.testing.assert_close(model.forward(data).scores, at_answers[:, list(WORDS)])
    with pytest.raises(ModelError, match="DistilBertForMaskedLM keeps its language-model head under an unknown name"):
        known_lm_head(model._base)
