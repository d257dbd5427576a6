"""Tests which readout a model gets, and which inputs of a batch it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from batches import of_texts
from conftest import classes
from peft_models import batch, made, part_of, ready

from fibec_ray.answers import Answers
from fibec_ray.model_types import Batch
from fibec_ray.models.inputs import Size, by_row
from fibec_ray.models.readouts import readout_of
from fibec_ray.models.sample_readouts import LastToken, MeanPool, OwnHead, Words, WordsOfWhole
from fibec_ray.models.token_readouts import Response, answers_of

TEXTS = Answers(likelihood="tokens", num_scores=0, readout="response")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize(
    ("family", "head", "kind"),
    [
        ("bert", "mean_pool", MeanPool),
        ("bert", "model", OwnHead),
        ("llama", "model", LastToken),
        ("bert", "masked_lm", Words),
        ("llama", "causal_lm", Words),
    ],
)
def test_the_readout_follows_from_the_base_and_the_answers(family: str, head: str, kind: type, cache: Path) -> None:
    model = made(part_of("lora"), family, head, cache)
    assert type(model._readout) is kind
    assert (model.head is None) == (head != "mean_pool") and not model._readout.predicts_tokens
    assert model._readout.num_predicted(batch()) == 0


def test_an_unknown_language_model_head_is_run_with_the_whole_model(cache: Path) -> None:
    base = made(part_of("lora"), "llama", "causal_lm", cache).base
    assert type(readout_of(base, classes(2, (5, 6)), None)) is Words
    base.config.logit_scale = 2.0
    assert type(readout_of(base, classes(2, (5, 6)), None)) is WordsOfWhole
    found = readout_of(base, TEXTS, None)
    assert type(found) is Response and found.predicts_tokens


def test_tokens_of_responses_are_counted(cache: Path) -> None:
    """Three samples of 7, 4 and 2 tokens whose prompts have 3, 2 and 1."""
    ids = batch().inputs["input_ids"]
    asked = of_texts(ids, batch().inputs["attention_mask"], torch.zeros(3), torch.tensor([2, 1, 0]))
    base = made(part_of("lora"), "llama", "causal_lm", cache).base
    assert readout_of(base, TEXTS, None).num_predicted(asked) == 4 + 2 + 1
    assert answers_of(asked, torch.device("cpu")).targets.tolist() == [
        *ids[0, 3:7].tolist(),
        *ids[1, 2:4].tolist(),
        int(ids[2, 1]),
    ]


def test_embeddings_stand_in_for_token_ids(cache: Path) -> None:
    model = ready("lora", "bert", "mean_pool", cache)
    found = model._inputs.arguments(batch(), None, model.device)
    assert list(found) == ["input_ids", "attention_mask"] and model._inputs.size(batch()) == Size(3, 7)
    found = model._inputs.arguments(batch(), model.embed(batch()), model.device)
    assert found.keys() == {"inputs_embeds", "attention_mask"} and found["inputs_embeds"].shape == (3, 7, 32)


def test_rows_of_samples_lie_next_to_each_other() -> None:
    ids = torch.arange(12).view(2, 2, 3)
    pairs = Batch({"input_ids": ids, "answer_at": torch.tensor([[0, 1], [2, 0]])}, torch.zeros(2))
    rows = by_row(pairs).inputs
    assert rows["input_ids"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert rows["answer_at"].tolist() == [0, 1, 2, 0] and (pairs.rows_each, pairs.num_samples) == (2, 2)
    assert by_row(single := batch()) is single
