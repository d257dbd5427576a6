"""Encoder-decoders that answer in text: losses, greedy decoding, gradients of single samples, blocks, costs, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from near import assert_all_near
from seq2seq_models import ALL, FAMILIES, SHARD, SOURCES, T5, TARGETS, made, shard_of
from torch.utils.flop_counter import FlopCounterMode

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.errors import ModelError
from fibec_ray.export.predict import _decode
from fibec_ray.models.backbone import from_config
from fibec_ray.models.seq2seq import Seq2SeqModel, StackCost
from fibec_ray.models.spec import Backbone
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.sharing.layer_scores import Noise, layer_sensitivity, layer_similarity


def single(model: Seq2SeqModel, row: int) -> Any:
    """transformers' own output for one sample."""
    source, target = torch.tensor([SOURCES[row]]), torch.tensor([TARGETS[row]])
    return model.base(input_ids=source, attention_mask=torch.ones_like(source), labels=target)


def test_a_batch_has_sources_and_targets_apart() -> None:
    inputs = SHARD.batch(torch.tensor([1, 3])).inputs
    assert inputs["input_ids"].tolist() == [[9, 8, 1], [8, 1, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert inputs["target_ids"].tolist() == [TARGETS[1], [21, 1, 0, 0, 0, 0]]
    assert inputs["target_mask"].sum(1).tolist() == [6, 2]


def test_masks_belong_to_source_or_target_even_where_both_are_equally_long() -> None:
    batch = shard_of([[5, 6, 1], [7, 1]], [[8, 1], [9, 9, 1]]).batch(torch.arange(2))
    source, target = (torch.zeros(2, batch.inputs[name].shape[1], 4) for name in ("input_ids", "target_ids"))
    assert batch.real(source).squeeze(2).tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.real(target).squeeze(2).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_exact_answers_are_those_of_transformers(family: str) -> None:
    """Of each sample alone, without padding."""
    model = made(family)
    out = model.forward(SHARD.batch(ALL))
    with torch.no_grad():
        alone = [single(model, row) for row in range(4)]
    torch.testing.assert_close(out.losses, torch.stack([each.loss for each in alone]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.scores, torch.cat([each.logits[0] for each in alone]), atol=1e-5, rtol=1e-5)
    embeds = model.embed(SHARD.batch(ALL))
    torch.testing.assert_close(model.forward(SHARD.batch(ALL), embeds=embeds).losses, out.losses)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_greedy_decoding_is_that_of_generate(family: str) -> None:
    model = made(family)
    found = _decode(model, [SOURCES[0], SOURCES[0][::-1]], end=1, most=6)
    ids = torch.tensor([SOURCES[0], SOURCES[0][::-1]])
    options = {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": 6,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "use_cache": False,
    }
    other = {"forced_eos_token_id": None, "forced_bos_token_id": None, "min_length": 0}
    made_by = model.base.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options, **other)
    texts = [row[1:] for row in made_by.tolist()]
    assert found == [row[: row.index(1)] if 1 in row else row for row in texts]


def test_an_answer_is_exact_if_decoding_gives_it() -> None:
    model = made()
    written = _decode(model, [SOURCES[0]], end=1, most=4)[0]
    other = [5 if written[0] != 5 else 6, *written[1:]]
    right = shard_of([SOURCES[0]] * 2, [written, other])
    assert model.forward(right.batch(torch.arange(2))).predicted.tolist() == [1, 0]


def test_gradients_of_single_samples_are_those_of_a_loop() -> None:
    """Of encoder, decoder and cross-attention."""
    model = made(peft=Lora(r=2, dropout=0, target_modules=("q", "k", "v", "wi")))
    names = list(model.trainable)
    assert {name.split(".")[2] for name in names} == {"encoder", "decoder"}
    assert any("EncDecAttention.k" in name for name in names)
    out, caught = model.per_sample_grads(SHARD.batch(ALL), names)
    found = caught.gradients(model.grad(out.losses.sum(), caught.tensors))
    diagonal = dict.fromkeys(names, torch.zeros(()))
    for row in range(4):
        grads = torch.autograd.grad(single(model, row).loss, list(model.trainable.values()))
        assert_all_near([found[name][row] for name in names], grads)
        for name, grad in zip(names, grads, strict=True):
            diagonal[name] = diagonal[name] + grad.square() / 4
    fisher = FisherScan(model, SHARD, [ALL], names, torch.Generator()).read("observed")
    for name in names:
        torch.testing.assert_close(fisher.diagonal[name], diagonal[name], atol=1e-6, rtol=1e-3)


def test_blocks_of_the_encoder_come_before_those_of_the_decoder() -> None:
    model = made()
    assert model.num_layers == 5
    assert {model.layer_of(name) for name in model.trainable} == set(range(5))
    decoder = {model.layer_of(name) for name in model.trainable if ".decoder." in name}
    assert decoder == {2, 3, 4}
    out = model.forward(SHARD.batch(ALL), hidden=True)
    assert [tuple(states.shape[:2]) for states in out.hidden] == [(4, 6)] * 2 + [(4, 7)] * 3
    assert out.last is not None and out.last.shape[:2] == (4, 7)


def test_noise_on_the_source_changes_the_blocks_of_both() -> None:
    model = made()
    scores = layer_sensitivity(model, SHARD, ALL, Noise(2.0, 0.1, True), "diff_norm")
    assert scores.shape == (5,) and bool((scores > 0).all())
    assert layer_similarity(model, SHARD, ALL).shape == (5,)


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_torch_counts(family: str) -> None:
    """Within a tenth: positions and masks are left out."""
    config = {"model_type": family, **FAMILIES[family]}
    base = from_config(Backbone(init="random", config=config, tokenizer="minilm", head="seq2seq", attention="eager"), 0)
    source, target = torch.ones(4, 12, dtype=torch.int64), torch.ones(4, 5, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        base(input_ids=source, decoder_input_ids=target)
    head = 2 * 32 * 50 * 5
    assert 4 * (StackCost.of(base).flops(12, 5) + head) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_lanes_say_why_they_do_not_apply() -> None:
    assert "two lengths" in str(made().obstacle_to_lanes())


@pytest.mark.parametrize(
    ("head", "config", "says"),
    [
        (
            "mean_pool",
            {"model_type": "t5", **T5},
            "is an encoder-decoder; .* with backbone.head=seq2seq for tasks with responses",
        ),
        ("seq2seq", {"model_type": "bert"}, "is not an encoder-decoder"),
        (
            "seq2seq",
            {"model_type": "prophetnet"},
            "of another family; .* encoder-decoders .t5, mt5, umt5, bart, pegasus",
        ),
    ],
)
def test_other_heads_and_models_are_rejected(head: Any, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        Backbone(init="random", config=config, tokenizer="minilm", head=head).check(True)
