"""Attention masks: the same results without one where nothing is padded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from batches import of_texts
from other_device import META, moved, without_transfers
from peft_models import FAMILIES, HEADS, batch, made, ready, stirred
from seq2seq_models import FAMILIES as SEQ2SEQ
from seq2seq_models import SHARD
from seq2seq_models import made as made_seq2seq
from torch import Tensor
from transformers import masking_utils

from fibec_ray.model_types import Batch
from fibec_ray.models.masks import Masks
from fibec_ray.models.torch_model import TorchModel
from fibec_ray.parts.peft.lora import Lora

VIRTUAL = ["prompt", "p_tuning", "prefix", "idpg", "lpt", "attempt"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def full() -> Batch:
    """Three samples of 7 tokens."""
    given = batch()
    ids = given.inputs["input_ids"]
    return of_texts(ids, torch.ones_like(ids), given.labels, torch.tensor([6, 6, 6]))


@contextmanager
def masked(model: TorchModel) -> Iterator[None]:
    """Always pass masks, as users of transformers do."""
    before = model._masks
    model._masks = Masks(model.base, model.device, needed=True)
    yield
    model._masks = before


def results(model: TorchModel, data: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
    out = model.forward(data, hidden=True)
    params = [p for p in model.trainable.values() if p.requires_grad]
    grads = torch.autograd.grad(out.losses.sum(), params, allow_unused=True)
    assert out.last is not None
    return out.losses, out.last, [grad for grad in grads if grad is not None]


def compare(model: TorchModel, data: Batch) -> None:
    found = results(model, data)
    with masked(model):
        expected = results(model, data)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def lora(family: str) -> Lora:
    return Lora(r=2, target_modules="all-linear" if family == "xlm" else None)


def given_to(model: TorchModel, data: Batch) -> set[str]:
    return set(model._run(data, None, False)._arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_compute_the_same_without_a_mask(family: str, cache: Path) -> None:
    model = stirred(made(lora(family), family, "mean_pool", cache))
    compare(model, full())
    assert "attention_mask" in given_to(model, batch())
    assert ("attention_mask" in given_to(model, full())) == (family in ("xlm", "deberta-v2"))


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("head", ["model", "masked_lm", "causal_lm"])
def test_heads_compute_the_same_without_a_mask(family: str, head: str, cache: Path) -> None:
    if head in HEADS[family]:
        compare(ready("lora", family, head, cache), full())


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("name", VIRTUAL)
def test_virtual_tokens_compute_the_same_without_a_mask(name: str, family: str, cache: Path) -> None:
    compare(ready(name, family, "mean_pool", cache), full())


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_encoder_decoders_compute_the_same_without_masks(family: str) -> None:
    model, data = made_seq2seq(family), SHARD.batch(torch.tensor([0]))
    compare(model, data)
    assert given_to(model, data) == {"input_ids", "decoder_input_ids"}
    padded = SHARD.batch(torch.arange(3))
    assert given_to(model, padded) == {"input_ids", "decoder_input_ids", "attention_mask", "decoder_attention_mask"}
    mixed = Batch({name: value[:1] for name, value in padded.inputs.items()}, padded.labels[:1])
    compare(model, mixed)


def causal_mask(model: TorchModel) -> Tensor | None:
    """What transformers builds for three rows of 7 tokens without a mask."""
    embeds, positions = torch.zeros(3, 7, 32), torch.arange(7).unsqueeze(0)
    found: Tensor | None = masking_utils.create_causal_mask(model.base.config, embeds, None, None, positions)
    return found


def test_no_mask_is_built_while_a_cuda_graph_is_captured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers cannot look at positions then, and takes rows for packed sequences."""
    model = ready("lora", "llama", "mean_pool", cache)
    masks = Masks(model.base, torch.device("cuda"), needed=False)
    monkeypatch.setattr(masking_utils, "is_tracing", lambda tensor=None: tensor is not None)
    assert causal_mask(model) is not None
    with masks.answered():
        assert causal_mask(model) is None


def test_transformers_reads_masks_itself_outside_our_passes(cache: Path) -> None:
    model, packed = ready("lora", "llama", "mean_pool", cache), torch.tensor([[0, 1, 2, 0, 1]])
    masks = Masks(model.base, torch.device("cuda"), needed=False)
    with masks.answered():
        assert masking_utils.find_packed_sequence_indices(packed) is None
    assert masking_utils.find_packed_sequence_indices(packed).tolist() == [[0, 0, 0, 1, 1]]
    with Masks(model.base, torch.device("cpu"), needed=False).answered():
        assert masking_utils.find_packed_sequence_indices(packed) is not None


def test_gpt2_does_not_look_for_padding_without_a_mask(cache: Path) -> None:
    """GPT-2 with a pad token looks for padding in the ids if there is no mask. On the meta device that fails."""
    model = made(lora("gpt2"), "gpt2", "mean_pool", cache)
    model.base.config.pad_token_id = 1
    there, data = moved(model), full().to(META)
    with without_transfers():
        assert there.forward(data).losses.shape == (3,)
