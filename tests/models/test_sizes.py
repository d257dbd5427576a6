"""What the backbone must have room for, and which prepared weights may be shared between runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import TINY_BERT

from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import load_tokenizer, prepare
from fibec_ray.models.sizes import check_sizes
from fibec_ray.models.spec import Backbone

SMALL = {**TINY_BERT, "max_position_embeddings": 40}


def test_a_vocabulary_smaller_than_the_tokenizer_s_is_refused() -> None:
    spec = Backbone(init="random", config={**SMALL, "vocab_size": 100}, tokenizer="minilm")
    with pytest.raises(ModelError, match="backbone.tokenizer: minilm has 30522 tokens, the backbone 100 embeddings"):
        check_sizes(spec, load_tokenizer(spec), 16)


def test_texts_longer_than_the_positions_are_refused() -> None:
    spec = Backbone(init="random", config=SMALL, tokenizer="minilm")
    check_sizes(spec, load_tokenizer(spec), 40)
    with pytest.raises(ModelError, match="data.max_length: 41 tokens, the backbone has 40 positions"):
        check_sizes(spec, load_tokenizer(spec), 41)


def test_the_roberta_family_has_two_positions_less() -> None:
    spec = Backbone(init="random", config={**SMALL, "model_type": "roberta"}, tokenizer="minilm")
    check_sizes(spec, load_tokenizer(spec), 38)
    with pytest.raises(ModelError, match="the backbone has 38 positions"):
        check_sizes(spec, load_tokenizer(spec), 39)


def test_pretrained_weights_are_prepared_once_for_all_seeds(tmp_path: Path) -> None:
    checkpoint = prepare(Backbone(init="random", config=SMALL, tokenizer="minilm"), 0, 2, tmp_path / "made")
    spec = Backbone(name=str(checkpoint), tokenizer="minilm")
    first = prepare(spec, 0, 2, tmp_path / "cache")
    assert prepare(spec, 1, 6, tmp_path / "cache") == first
    assert prepare(spec.model_copy(update={"attention": "eager"}), 0, 2, tmp_path / "cache") == first
    weights = checkpoint / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 10**9))
    assert prepare(spec, 0, 2, tmp_path / "cache") != first
