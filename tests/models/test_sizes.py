"""What the backbone must have room for, and which prepared weights may be shared between runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import TINY_BERT, TINY_LLAMA, make_tiny

from fibec_ray.config.load import check
from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import from_config, load_tokenizer, locate, prepare
from fibec_ray.models.sizes import check_sizes, positions_of
from fibec_ray.models.spec import Backbone
from fibec_ray.runs.simulation import simulate

SMALL = {**TINY_BERT, "max_position_embeddings": 40}


def random(config: dict[str, Any], **more: Any) -> Backbone:
    return Backbone(init="random", config=config, tokenizer="minilm", **more)


def test_a_vocabulary_smaller_than_the_tokenizer_s_is_refused() -> None:
    spec = random({**SMALL, "vocab_size": 100})
    with pytest.raises(
        ModelError, match="backbone.tokenizer: minilm has 30522 tokens, but the backbone has 100 embeddings"
    ):
        check_sizes(spec, load_tokenizer(spec), 16)


def test_texts_longer_than_the_positions_are_refused() -> None:
    spec = random(SMALL)
    assert check_sizes(spec, load_tokenizer(spec), 40) == 30522
    with pytest.raises(ModelError, match="data.max_length: 41 tokens, but the backbone has 40 positions"):
        check_sizes(spec, load_tokenizer(spec), 41)
    with pytest.raises(ModelError, match=r"30 tokens and 11 virtual ones \(method.peft\), but the backbone has 40"):
        check_sizes(spec, load_tokenizer(spec), 30, num_virtual=11)


DISTILBERT = {"dim": 16, "n_layers": 1, "n_heads": 2, "sinusoidal_pos_embds": True}
LIMITS: dict[str, tuple[dict[str, Any], int | None]] = {
    "bert": (SMALL, 40),
    "roberta": (SMALL, 38),
    "xlm-roberta": ({**SMALL, "pad_token_id": 0}, 39),
    "camembert": (SMALL, 38),
    "mpnet": (SMALL, 38),
    "longformer": ({**SMALL, "attention_window": 8}, 38),
    "nystromformer": (SMALL, 40),
    "opt": ({**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}, 40),
    "distilbert": ({**DISTILBERT, "max_position_embeddings": 24}, 24),
    "gpt2": ({"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}, 24),
    "gptj": ({"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_positions": 24}, 24),
    "llama": ({**TINY_LLAMA, "max_position_embeddings": 40}, 40),
    "mpt": ({"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 24}, 24),
    "deberta-v2": (SMALL, 40),
    "deberta-v2 without a table": ({**SMALL, "relative_attention": True, "position_biased_input": False}, None),
    "bloom": ({"hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
    "xlnet": ({"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}, None),
}  # fmt: skip


@pytest.mark.parametrize("family", LIMITS)
def test_limits_of_positions_are_the_family_s_own(family: str) -> None:
    config, limit = LIMITS[family]
    with torch.device("meta"):
        base = from_config(random({**config, "vocab_size": 50, "model_type": family.split()[0]}), 2)
    assert positions_of(base) == limit


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "opt", "gpt2", "distilbert"])
def test_as_many_tokens_as_that_can_be_computed_and_one_more_cannot(family: str, tmp_path: Path) -> None:
    config, limit = LIMITS[family]
    config = {name: value for name, value in config.items() if name != "model_type"}
    made = transformers.AutoConfig.for_model(family, **{**config, "vocab_size": 50})
    base = transformers.AutoModel.from_config(made)
    for length in (limit, (limit or 0) + 1):
        ids = torch.full((1, length or 0), 7)
        if length == limit:
            base(input_ids=ids, attention_mask=torch.ones_like(ids))
        else:
            with pytest.raises((IndexError, RuntimeError)):
                base(input_ids=ids, attention_mask=torch.ones_like(ids))


# --- a model's own tokenizer


def checkpoint(folder: Path, added: dict[str, Any]) -> Path:
    """A BERT whose tokenizer got tokens that its embeddings were not resized for."""
    transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**SMALL)).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(locate("minilm"))
    tokenizer.add_special_tokens(added) if "pad_token" in added else tokenizer.add_tokens(added["tokens"])
    tokenizer.save_pretrained(folder)
    return folder


def experiment(folder: Path) -> Any:
    backbone = {"init": "pretrained", "config": None, "tokenizer": None, "name": str(folder)}
    return check(make_tiny(backbone=backbone, rounds=1), "test")


@pytest.mark.parametrize(
    ("added", "what"),
    [({"pad_token": "[NEWPAD]"}, r"the padding token '\[NEWPAD\]'"), ({"tokens": ["is the"]}, "the token 'is the'")],
)
def test_a_token_without_an_embedding_is_found_before_the_run(added: Any, what: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "there", added)
    with pytest.raises(ModelError, match=f"^backbone.tokenizer: {what} has the id 30522, but the backbone has 30522 "):
        simulate(experiment(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    model = transformers.AutoModel.from_pretrained(folder)
    model.resize_token_embeddings(30523)  # as the message says
    model.save_pretrained(folder)
    assert simulate(experiment(folder), tmp_path / "run").rows[-1]["num_devices"] == 3


def test_an_added_token_that_no_text_has_is_in_nobody_s_way(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "there", {"tokens": ["qqzzqq"]})
    assert simulate(experiment(folder), tmp_path / "run").rows


def test_pretrained_weights_are_prepared_once_for_all_seeds(tmp_path: Path) -> None:
    checkpoint = prepare(random(SMALL), 0, 2, tmp_path / "made")
    spec = Backbone(name=str(checkpoint), tokenizer="minilm")
    first = prepare(spec, 0, 2, tmp_path / "cache")
    assert prepare(spec, 1, 6, tmp_path / "cache") == first
    assert prepare(spec.model_copy(update={"attention": "eager"}), 0, 2, tmp_path / "cache") == first
    weights = checkpoint / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 10**9))
    assert prepare(spec, 0, 2, tmp_path / "cache") != first
