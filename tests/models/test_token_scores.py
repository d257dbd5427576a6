"""Losses over large vocabularies in parts: the same values and gradients, and little memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from batches import of_texts
from near import assert_all_near
from peft_models import batch, made, stirred
from seq2seq_models import FAMILIES as SEQ2SEQ
from seq2seq_models import SHARD
from seq2seq_models import made as made_seq2seq
from torch import Tensor, nn

from fibec_ray.answers import Answers
from fibec_ray.model_types import Batch, LaneBatch, LateScores, Outputs
from fibec_ray.models import token_scores
from fibec_ray.models.token_readouts import Pair, Response
from fibec_ray.models.token_scores import in_parts
from fibec_ray.models.torch_model import TorchModel
from fibec_ray.parts.peft.lora import Lora

TEXTS = Answers(likelihood="tokens", num_scores=0, readout="response")
MARGIN = Answers(likelihood="bernoulli", num_scores=1, readout="pair", beta=0.1)
ROWS, HIDDEN, VOCABULARY = 64, 16, 2000


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    return stirred(made(Lora(r=2), "llama", "causal_lm", tmp_path_factory.mktemp("bases")))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two tokens."""
    monkeypatch.setattr(token_scores, "MOST_SCORES", 100)


def asked() -> Batch:
    """Responses of 4, 2 and 1 tokens."""
    ids, mask = batch().inputs["input_ids"], batch().inputs["attention_mask"]
    return of_texts(ids, mask, batch().labels, torch.tensor([2, 1, 0]))


def pairs() -> Batch:
    inputs = {name: torch.stack([value, value.flip(0)], 1) for name, value in asked().inputs.items()}
    return Batch(inputs, torch.ones(3, 1))


def results(model: TorchModel, data: Batch) -> tuple[Outputs, list[Tensor]]:
    out = model.forward(data)
    weights = torch.arange(1.0, 1 + len(out.losses))
    params = list(model.trainable.values())
    return out, list(torch.autograd.grad((out.losses * weights).sum(), params, retain_graph=True))


def compare(model: TorchModel, data: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[Outputs, Outputs]:
    expected, grads = results(model, data)
    monkeypatch.setattr(token_scores, "MOST_SCORES", 100)
    found, same = results(model, data)
    torch.testing.assert_close(found.losses, expected.losses)
    assert_all_near(same, grads)
    return found, expected


def test_responses_have_the_same_losses_scores_and_gradients(
    decoder: TorchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder._readout = Response(decoder.base, TEXTS)
    found, expected = compare(decoder, asked(), monkeypatch)
    assert isinstance(found.given, LateScores) and isinstance(expected.given, Tensor)
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.scores is found.scores and found.scores.requires_grad
    assert torch.equal(found.predicted, expected.predicted)
    squares = [value.likelihood.sampled(value.scores, torch.tensor([0.1, 0.5, 0.9])) for value in (found, expected)]
    torch.testing.assert_close(*squares)


def test_pairs_have_the_same_losses_and_gradients(decoder: TorchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder._readout = Pair(decoder.base, MARGIN)
    found, expected = compare(decoder, pairs(), monkeypatch)
    torch.testing.assert_close(found.predicted, expected.predicted)


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_targets_have_the_same_losses_and_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_seq2seq(family)
    if (bias := getattr(model.base, "final_logits_bias", None)) is not None:
        bias.copy_(torch.linspace(-1, 1, bias.numel()).view_as(bias))
    found, expected = compare(model, SHARD.batch(torch.arange(4)), monkeypatch)
    torch.testing.assert_close(found.scores, expected.scores)


@torch.no_grad()
def test_evaluations_keep_the_likeliest_words(decoder: TorchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder._readout = Response(decoder.base, TEXTS)
    expected = decoder.forward(asked())
    monkeypatch.setattr(token_scores, "MOST_SCORES", 100)
    found = decoder.forward(asked())
    assert isinstance(found.given, LateScores)
    monkeypatch.setattr(type(found.given), "compute", None)
    torch.testing.assert_close(found.losses, expected.losses)
    assert torch.equal(found.predicted, expected.predicted)
    assert isinstance(expected.given, Tensor)
    assert torch.equal(found.given.argmax(1), expected.given.argmax(1))


@pytest.mark.usefixtures("small")
def test_lanes_have_their_own_scores(decoder: TorchModel) -> None:
    decoder._readout = Response(decoder.base, TEXTS)
    lanes = [LaneBatch(decoder.trainable, asked()), LaneBatch(decoder.trainable, asked())]
    outs, _ = decoder.together(lanes)
    alone = decoder.forward(asked())
    for out in outs:
        assert isinstance(out.given, LateScores)
        torch.testing.assert_close(out.scores, alone.scores)
        assert torch.equal(out.predicted, alone.predicted)


def test_a_trained_head_is_called_once(small: None) -> None:
    head = nn.Linear(HIDDEN, VOCABULARY)
    assert isinstance(token_scores.token_scores(head, torch.ones(3, HIDDEN)), Tensor)
    assert isinstance(token_scores.token_scores(head.requires_grad_(False), torch.ones(3, HIDDEN)), LateScores)


def test_gradients_can_be_differentiated(small: None) -> None:
    """As the spectrum of a Hessian needs."""
    head, states, targets = _case(5)
    found = torch.autograd.functional.hessian(lambda x: in_parts(head, x).losses(targets).sum(), states)
    expected = torch.autograd.functional.hessian(
        lambda x: nn.functional.cross_entropy(head(x), targets, reduction="sum"), states
    )
    torch.testing.assert_close(found, expected)


def test_little_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, the log-probabilities (R, V); in parts, those of one part, and gradients (R, H)."""
    head, states, targets = _case(ROWS, VOCABULARY)
    states.requires_grad_()
    at_once = _peak(lambda: nn.functional.cross_entropy(head(states), targets, reduction="none"))
    monkeypatch.setattr(token_scores, "MOST_SCORES", 8 * VOCABULARY)  # of 64 tokens
    parts = _peak(lambda: in_parts(head, states).losses(targets))
    assert at_once >= 4 * ROWS * VOCABULARY and parts <= at_once / 4


def _case(rows: int, vocabulary: int = 40) -> tuple[nn.Linear, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    head = nn.Linear(HIDDEN, vocabulary).requires_grad_(False)
    states = torch.randn(rows, HIDDEN, generator=rng)
    return head, states, torch.randint(vocabulary, (rows,), generator=rng)


def _peak(losses: Any) -> int:
    """Most bytes that autograd keeps at any time, of tensors other than the head's weights."""
    alive: weakref.WeakSet[_Kept] = weakref.WeakSet()
    peaks = [0]

    def pack(value: Tensor) -> _Kept:
        kept = _Kept(value)
        alive.add(kept)
        peaks.append(sum(each.size for each in alive if each.rows != HIDDEN))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.value):
        losses()
    return max(peaks)


class _Kept:
    """A tensor that autograd keeps."""

    def __init__(self, value: Tensor):
        self.value, self.size = value, value.numel() * value.element_size()
        self.rows = value.shape[0] if value.dim() == 2 else 0
