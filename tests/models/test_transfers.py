"""Passes over a batch on the model's device copy nothing to or from the host, and read nothing back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from batches import first, of_texts
from conftest import classes
from other_device import META, moved, without_transfers
from peft_models import FAMILIES, WORDS, batch, made
from seq2seq_models import FAMILIES as SEQ2SEQ
from seq2seq_models import SHARD
from seq2seq_models import made as made_seq2seq

from fibec_ray.answers import Answers
from fibec_ray.batch_facts import join_facts
from fibec_ray.model_types import NO_LABEL, Batch, LaneBatch
from fibec_ray.models.inputs import by_row
from fibec_ray.models.joined import join
from fibec_ray.models.sample_readouts import Words, WordsOfWhole
from fibec_ray.models.token_readouts import Pair, Response, TokenHead
from fibec_ray.models.torch_model import TorchModel
from fibec_ray.parts.peft.lora import Lora

LORA = Lora(r=2)
TEXTS = Answers(likelihood="tokens", num_scores=0, readout="response")
TAGS = Answers(likelihood="tags", num_scores=3, readout="token")
MARGIN = Answers(likelihood="bernoulli", num_scores=1, readout="pair", beta=0.1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def full() -> Batch:
    """Three samples of 7 tokens."""
    ids = batch().inputs["input_ids"]
    return of_texts(ids, torch.ones_like(ids), batch().labels, torch.tensor([5, 5, 5]))


def step(model: TorchModel, data: Batch, hidden: bool = False) -> None:
    """Forward and backward."""
    out = model.forward(data, hidden=hidden)
    grads = torch.autograd.grad(out.losses.sum(), list(model.trainable.values()), allow_unused=True)
    assert any(grad is not None for grad in grads)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"xlm"}))
def test_a_step_of_every_family(family: str, padded: bool, cache: Path) -> None:
    model = moved(made(LORA, family, "mean_pool", cache))
    data = (batch() if padded else full()).to(META)
    with without_transfers():
        step(model, data, hidden=True)


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_a_step_of_an_encoder_decoder(family: str) -> None:
    model, data = moved(made_seq2seq(family, LORA)), SHARD.batch(torch.arange(4)).to(META)
    with without_transfers():
        step(model, data)
        assert model.cost(data, graph=True).flops


def tagged(data: Batch) -> Batch:
    mask = data.inputs["attention_mask"]
    return Batch(data.inputs, torch.where(mask == 1, torch.ones_like(mask), NO_LABEL))


def paired(data: Batch) -> Batch:
    inputs = {name: torch.stack([value, value.flip(0)], 1) for name, value in data.inputs.items()}
    return Batch(inputs, torch.ones(3, 1, dtype=torch.int64))


def asked(data: Batch) -> Batch:
    return of_texts(
        *(data.inputs[name] for name in ("input_ids", "attention_mask")), data.labels, torch.tensor([2, 1, 0])
    )


READOUTS = {
    "words": (Words, classes(3, WORDS), batch()),
    "words of all logits": (WordsOfWhole, classes(3, WORDS), batch()),
    "responses": (Response, TEXTS, asked(batch())),
    "pairs": (Pair, MARGIN, paired(asked(batch()))),
}


@pytest.mark.parametrize("name", READOUTS)
def test_a_step_with_every_readout(name: str, cache: Path) -> None:
    kind, answers, data = READOUTS[name]
    model = moved(made(LORA, "llama", "causal_lm", cache))
    model._readout = kind(model.base, answers)
    check(model, data.to(META))


def test_a_step_with_tags(cache: Path) -> None:
    model = moved(made(LORA, "bert", "mean_pool", cache))
    assert model.head is not None
    model._readout = TokenHead(model.base, TAGS, model.head)
    check(model, tagged(batch()).to(META))


@pytest.mark.parametrize("head", ["mean_pool", "model"])
def test_a_step_with_a_classification_head(head: str, cache: Path) -> None:
    check(moved(made(LORA, "llama", head, cache)), batch().to(META))


def check(model: TorchModel, data: Batch) -> None:
    if isinstance(model._readout, Words):
        step(model, data)  # the words' ids are copied once, in the first pass
    with without_transfers():
        step(model, data)
        assert model.cost(data, graph=True).flops


@pytest.mark.parametrize("name", ["words", "responses", "pairs"])
def test_a_step_of_lanes(name: str, cache: Path) -> None:
    kind, answers, data = READOUTS[name]
    model = moved(made(LORA, "llama", "causal_lm", cache))
    model._readout = kind(model.base, answers)
    values = {key: torch.zeros_like(value, requires_grad=True) for key, value in model.trainable.items()}
    lanes = [LaneBatch(values, each.to(META)) for each in (first(data, 2), data)]
    check(model, data.to(META))
    with without_transfers():
        outs, _ = model.together(lanes)
        losses = torch.stack([out.losses.mean() for out in outs])
        torch.autograd.grad(losses.sum(), list(values.values()))


@pytest.mark.parametrize("make", [asked, tagged, paired])
def test_joined_facts_are_those_of_the_joined_batch(make: Any) -> None:
    """Two batches, the second one shorter."""
    parts = [make(full()), make(batch())]
    parts[1] = Batch({name: value[..., :6] for name, value in parts[1].inputs.items()}, parts[1].labels)
    if make is tagged:
        parts[1] = Batch(parts[1].inputs, parts[1].labels[:, :6])
    found, expected = join([part.to(META) for part in parts], 0), join(parts, 0)
    known = join_facts(
        [part.facts for part in parts], [3 * part.rows_each for part in parts], {"attention_mask": [7, 6]}
    )
    assert found.padded == known.padded == expected.padded
    assert known.answers is not None and expected.answers is not None and found.answers is not None
    for name in ("targets", "sample", "column", "counts"):
        assert torch.equal(getattr(known.answers, name), getattr(expected.answers, name)), name
    assert found.answers.sizes == known.answers.sizes == expected.answers.sizes
    assert found.answers.longest == expected.answers.longest


def test_a_batch_carries_its_facts() -> None:
    for data in (batch(), asked(batch()), tagged(batch()), paired(batch())):
        away = data.to(META)
        assert away.to(META) is away and data.to(torch.device("cpu")) is data
        assert away.padded == data.padded == {"attention_mask"}
        assert away.answers is not None and data.answers is not None
        assert away.answers.sizes == data.answers.sizes and away.answers.targets.device == META
        assert by_row(away).padded == data.padded
    assert not full().padded
