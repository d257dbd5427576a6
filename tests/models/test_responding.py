"""A causal language model that answers in text: losses of responses, exact matches, gradients of single samples."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.curvature.ggn import sample_gradients, top_eigenpairs
from fibec_ray.data.encoded import ArrayShard, EncodedSet
from fibec_ray.errors import ModelError
from fibec_ray.learning.lanes import Lanes
from fibec_ray.likelihoods import TOKEN_DRAWS, Label, Tokens
from fibec_ray.model_types import Outputs
from fibec_ray.models.architecture import check_causal
from fibec_ray.models.backbone import prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.responses import ResponseTokens

BASIC = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**BASIC, "intermediate_size": 64, "num_key_value_heads": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "gpt2": {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 2, "eos_token_id": 2},
    "opt": {**BASIC, "ffn_dim": 64, "word_embed_proj_dim": 16},
}
PROMPTS = [[5, 6, 7, 8], [9, 8], [4, 4, 4, 4, 4], [8]]
RESPONSES = [[9, 10, 2], [11, 12, 13, 14, 15, 2], [7, 2], [21, 2]]
ALL = torch.arange(4)


def response_of(out: Outputs) -> ResponseTokens:
    assert isinstance(out.likelihood, Tokens)
    return out.likelihood.response


def shard_of(prompts: list[list[int]], responses: list[list[int]]) -> ArrayShard:
    samples = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    tokens = np.array([token for sample in samples for token in sample], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, samples)])
    answer_at = np.array([len(prompt) - 1 for prompt in prompts], dtype=np.int32)
    labels, texts = np.zeros(len(samples), np.int64), np.zeros(len(tokens), np.uint8)
    return EncodedSet(tokens, offsets, labels, answer_at, None, 0, texts).shard(np.arange(len(samples)))


SHARD = shard_of(PROMPTS, RESPONSES)


def made(family: str = "llama", spec: dict[str, Any] | None = None, **peft: Any) -> TorchModel:
    """With an adapter as after some training."""
    config = {"model_type": family, **FAMILIES[family]}
    backbone = Backbone(init="random", config=config, tokenizer="minilm", head="causal_lm", **(spec or {}))
    folder = prepare(backbone, 0, 0, Path(os.environ["FIBEC_RAY_CACHE"]))
    model = TorchModel(ModelSpec(backbone, Lora(r=4, **peft), TEXTS, 1), folder)
    rng = torch.Generator().manual_seed(2)
    model.load({n: 0.2 * torch.randn(p.shape, generator=rng) for n, p in model.trainable.items()})
    model.train(False)
    return model


each_family = pytest.mark.parametrize("family", FAMILIES)


@each_family
@torch.no_grad()
def test_the_loss_is_the_mean_over_the_tokens_of_the_response(family: str) -> None:
    """Of transformers' own logits for each sample alone, so without padding: right for positions of all kinds, too."""
    model = made(family)
    found = model.forward(SHARD.batch(ALL))
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        log_probs = model.peft_model(torch.tensor([prompt + response])).logits[0].log_softmax(1)
        by_hand = -sum(float(log_probs[len(prompt) - 1 + t, token]) for t, token in enumerate(response)) / len(response)
        assert float(found.losses[i]) == pytest.approx(by_hand, rel=1e-5)
    assert response_of(found).counts.tolist() == [3, 6, 2, 2]
    assert found.scores.shape == (13, 50)


@torch.no_grad()
def test_what_stands_in_the_prompt_is_not_learnt_and_padding_is_nothing() -> None:
    """The logits at a response's places alone: other prompts of the same states would give the same loss."""
    model = made()
    together = model.forward(SHARD.batch(ALL))
    assert response_of(together).targets.tolist() == [token for response in RESPONSES for token in response]
    alone = [model.forward(SHARD.batch(torch.tensor([i]))).losses for i in range(4)]
    torch.testing.assert_close(together.losses, torch.cat(alone), atol=1e-5, rtol=1e-5)


@each_family
@torch.no_grad()
def test_an_exact_match_is_what_greedy_decoding_gives(family: str) -> None:
    """By transformers' generate: of the responses that it gives, and of ones that differ from them in one token."""
    model, written = made(family), []
    model.base.generation_config.eos_token_id = None  # so that four tokens are the likeliest four
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        out = model.peft_model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        written.append(out[0, len(prompt) :].tolist())
    assert model.forward(shard_of(PROMPTS, written).batch(ALL)).predicted.tolist() == [1, 1, 1, 1]
    for place in range(4):
        other = [[(token + 1) % 50 if t == place else token for t, token in enumerate(each)] for each in written]
        assert model.forward(shard_of(PROMPTS, other).batch(ALL)).predicted.tolist() == [0, 0, 0, 0]
    shorter = [each[: i + 1] for i, each in enumerate(written)]
    assert model.forward(shard_of(PROMPTS, shorter).batch(ALL)).predicted.tolist() == [1, 1, 1, 1]


def scanned(model: Any, label: Label) -> Any:
    names = list(model.trainable)
    return FisherScan(model, SHARD, ALL.split(2), names, torch.Generator().manual_seed(3)).read(label)


@each_family
def test_squared_gradients_are_those_of_samples_one_by_one(family: str) -> None:
    model = made(family)
    found, sums, traces = scanned(model, "observed"), dict[str, Tensor](), []
    for i in range(4):
        loss = model.forward(SHARD.batch(torch.tensor([i]))).losses.sum()
        grads = torch.autograd.grad(loss, list(model.trainable.values()))
        for name, grad in zip(model.trainable, grads, strict=True):
            sums[name] = sums.get(name, 0) + grad.square() / 4
        traces.append(sum(float(grad.square().sum()) for grad in grads))
    torch.testing.assert_close(found.traces, torch.tensor(traces), rtol=1e-4, atol=1e-7)
    for name, value in sums.items():
        torch.testing.assert_close(found.diagonal[name], value, rtol=1e-3, atol=1e-5 * float(value.max()))


def test_drawn_tokens_do_not_depend_on_the_batch_and_follow_the_model() -> None:
    model = made()
    with torch.no_grad():
        out = model.forward(SHARD.batch(ALL))
        two = model.forward(SHARD.batch(torch.tensor([2, 0])))
    response = response_of(out)
    draws = torch.rand(4, generator=torch.Generator().manual_seed(0))
    drawn = response.draw(out.scores, draws).split(response.counts.tolist())
    again = response_of(two).draw(two.scores, draws[[2, 0]])
    assert again.tolist() == [*drawn[2].tolist(), *drawn[0].tolist()]
    counts = torch.zeros(50)
    for k in range(3000):
        counts[response.draw(out.scores, torch.full((4,), k / 3000))[0]] += 1 / 3000
    assert float((counts - out.scores[0].softmax(0)).abs().max()) < 0.03


def test_drawn_tokens_have_the_diagonal_of_the_gauss_newton_matrix() -> None:
    """H's by a sum over all tokens. E[g^2] with g the gradient of the mean over T drawn tokens is that of H / T."""
    model = made()
    one = shard_of(PROMPTS[:1], RESPONSES[:1])
    name = next(iter(model.trainable))
    out = model.forward(one.batch(torch.tensor([0])))
    p = out.scores.detach().softmax(1)
    exact: Any = 0.0
    for t in range(3):
        rows = [torch.autograd.grad(out.scores[t, v], model.trainable[name], retain_graph=True)[0] for v in range(50)]
        j = torch.stack(rows).flatten(1)
        mean = p[t] @ j
        exact = exact + (p[t] @ j.square() - mean.square()) / 3
    draws = torch.rand(1, 800, generator=torch.Generator().manual_seed(1))
    columns = sample_gradients(model, one, torch.tensor([0]), [name], draws)
    found = sum(column[name].flatten(1).square().sum(0) for column in columns)
    assert float((found - exact).norm() / exact.norm()) < 0.15
    squares = []
    for seed in range(120):
        scan = FisherScan(model, one, [torch.tensor([0])], [name], torch.Generator().manual_seed(seed))
        squares.append(scan.read("sampled").diagonal[name].flatten())
    assert float((torch.stack(squares).mean(0) * 3 - exact).norm() / exact.norm()) < 0.3


def test_eigenpairs_are_those_of_the_drawn_columns() -> None:
    model = made()
    names = list(model.trainable)[:2]
    found = top_eigenpairs(model, SHARD, ALL, {"block": names}, 30, torch.Generator().manual_seed(4), "gram")["block"]
    assert 1 < len(found.values) <= 4 * TOKEN_DRAWS
    draws = torch.rand(4, TOKEN_DRAWS, generator=torch.Generator().manual_seed(4))
    columns = [
        torch.cat([column[name].flatten(1) for name in names], 1)
        for column in sample_gradients(model, SHARD, ALL, names, draws)
    ]
    dense = torch.cat(columns).double()
    expected = torch.linalg.eigvalsh(dense @ dense.T / 4).flip(0)[: len(found.values)]
    torch.testing.assert_close(found.values.double(), expected, rtol=1e-4, atol=1e-7 * float(expected[0]))
    rng = torch.Generator().manual_seed(4)
    other = top_eigenpairs(model, SHARD, ALL, {"block": names}, 3, rng, "subspace")["block"]
    torch.testing.assert_close(other.values, found.values[:3], rtol=1e-3, atol=0)


def test_all_labels_cannot_be_expected() -> None:
    with pytest.raises(ModelError, match="too many labels for label: expected; set label to sampled or observed"):
        scanned(made(), "expected")


@pytest.mark.parametrize("label", ["observed", "sampled"])
def test_lanes_come_to_what_devices_come_to_alone(label: Label) -> None:
    """Two lanes with values of their own, and responses of other lengths: losses, exact matches, gradients, Fisher."""
    model, other = made(), shard_of(PROMPTS[1:3], [[3, 2], [30, 31, 32, 33, 2]])
    values = model.read()
    second = {name: value + 0.1 for name, value in values.items()}

    def work(each: Any, own: dict[str, Tensor], shard: ArrayShard) -> list[Any]:
        each.load(own)
        each.train(False)
        out, _ = each.per_sample_grads(shard.batch(torch.arange(shard.num_samples)))
        grads = each.grad(out.losses.mean(), list(each.trainable.values()))
        rng = torch.Generator().manual_seed(3)
        fisher = FisherScan(each, shard, [torch.arange(shard.num_samples)], list(values), rng).read(label)
        with torch.no_grad():
            predicted = each.forward(shard.batch(torch.tensor([1, 0]))).predicted
        return [out.losses.detach(), predicted, fisher.traces, *grads]

    alone = [work(model, values, SHARD), work(model, second, other)]
    lanes = Lanes(model, 2)
    pieces = [lambda: work(lanes.models[0], values, SHARD), lambda: work(lanes.models[1], second, other)]
    for found, expected in zip(lanes.run(pieces), alone, strict=True):
        for value, same in zip(found, expected, strict=True):
            torch.testing.assert_close(value, same, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("more", [{"backend": "stream"}, {"backend": "stream", "checkpointing": True}])
def test_however_the_base_is_held_the_bits_are_those_of_plain(more: dict[str, Any]) -> None:
    """In bfloat16, where all backends use PyTorch's products."""

    def found(**spec: Any) -> list[Tensor]:
        model = made(spec={"dtype": "bfloat16", **spec})
        model.train(True)
        out, _ = model.per_sample_grads(SHARD.batch(ALL))
        grads = model.grad(out.losses.mean(), list(model.trainable.values()))
        return [out.losses.detach(), *(grad for grad in grads if grad is not None), scanned(model, "observed").traces]

    for value, same in zip(found(**more), found(backend="plain"), strict=True):
        assert torch.equal(value, same)


def test_an_encoder_is_no_causal_language_model() -> None:
    config = {"model_type": "bert", **BASIC, "intermediate_size": 64}
    spec = Backbone(init="random", config=config, tokenizer="minilm", head="causal_lm")
    with pytest.raises(ModelError, match="bert is not a causal language model"):
        check_causal(spec)
    gemma = spec.model_copy(update={"config": {"model_type": "gemma2", "final_logit_softcapping": 30.0}})
    with pytest.raises(ModelError, match="gemma2 changes its logits after the head .final_logit_softcapping"):
        check_causal(gemma)
    for family in FAMILIES:
        check_causal(spec.model_copy(update={"config": {"model_type": family, **FAMILIES[family]}}))
