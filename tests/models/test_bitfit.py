"""BitFit: which biases, and whose memory they are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft_models import made, stirred

from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import open_base, prepare
from fibec_ray.parts.peft.bitfit import BitFit


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("head", ["mean_pool", "model", "masked_lm"])
def test_all_biases_that_take_part_are_trained(head: str, cache: Path) -> None:
    """An unused pooler's is left out. A language-model head brings two of its own, of its dense and its LayerNorm, and
    one over the vocabulary, which two modules share.
    """
    model = made(BitFit(), "bert", head, cache)
    names = {name for name in model.trainable if model.is_adapter(name)}
    every = {name for name, _ in model.peft_model.named_parameters() if name.endswith("bias")}
    if head == "model":
        assert every - names == {"classifier.bias"} and {"bert.pooler.dense.bias", "classifier.bias"} <= every
        assert {"classifier.weight", "classifier.bias"} == set(model.trainable) - names
    elif head == "mean_pool":
        assert every - names == {"pooler.dense.bias"}
    else:
        assert every == names and sum("cls." in name for name in names) == 3


def test_queries_and_feed_forwards(cache: Path) -> None:
    """In each block b_q (32) and the first of the feed-forward's two (64)."""
    model = made(BitFit(which="query_and_ffn"), "bert", "mean_pool", cache)
    names = [f"encoder.layer.{i}.{at}.bias" for i in range(3) for at in ("attention.self.query", "intermediate.dense")]
    assert [name for name in model.trainable if model.is_adapter(name)] == names
    assert sum(model.trainable[name].numel() for name in names) == 3 * (32 + 64)


def test_biases_are_private_and_the_file_stays_as_it_is(cache: Path) -> None:
    model = made(BitFit(), "bert", "mean_pool", cache)
    before = model.read()
    stirred(model)
    base: Any = open_base(model._spec, prepare(model._spec, 0, 3, cache))
    fresh = dict(base.named_parameters())
    for name in before:
        if model.is_adapter(name):
            assert torch.equal(fresh[name], before[name]) and not torch.equal(fresh[name], model.read()[name])


def test_query_biases_of_a_family_that_fuses_them(cache: Path) -> None:
    with pytest.raises(ModelError, match="bitfit trains biases, but GPT2Model has none at query, .*; set which: all"):
        made(BitFit(which="query_and_ffn"), "gpt2", "mean_pool", cache)
    model = made(BitFit(), "gpt2", "mean_pool", cache)
    assert {model.layer_of(name) for name in model.trainable if model.is_adapter(name)} == {0, 1, 2, None}
