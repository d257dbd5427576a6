"""Token types (the second text of a pair) reach the model as transformers' own tokenizer and model have them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_LLAMA, classes, make_tiny, named
from torch.nn import functional as F

from fibec_ray.config.load import check
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.errors import ModelError
from fibec_ray.learning.federation import Federation
from fibec_ray.model_types import Batch, LaneBatch
from fibec_ray.models.backbone import from_config, load_tokenizer
from fibec_ray.models.sizes import takes_types
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.simulation import prepare, simulate

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "electra": {**SIZES, "embedding_size": 16},
    "deberta-v2": {**SIZES, "type_vocab_size": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
}
ROWS = [
    (f"the {noun} is {size}", f"{other} sees a {noun} that is {'small' if size == 'large' else size}", i % 2)
    for i, (noun, size, other) in enumerate(
        (noun, size, other) for noun in ("house", "cat", "hill") for size in ("large", "old") for other in ("he", "she")
    )
]


def pairs(folder: Path) -> dict[str, Any]:
    """Files of twelve pairs, and the task and data sections that go with them."""
    folder.mkdir()
    for split in ("train", "validation"):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("sentence1", "sentence2", "label"), *ROWS])
    return {"task": named("tasks", "mrpc"), "data": {"path": str(folder), "max_length": 32}}


def checkpoint(family: str, folder: Path) -> Path:
    """A random classifier whose weights are all in the checkpoint, with a tokenizer of BERT's kind."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(5)
    config = AutoConfig.for_model(family, vocab_size=30522, num_labels=2, initializer_range=0.3, **FAMILIES[family])
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    load_tokenizer(Backbone()).save_pretrained(folder)
    return folder


def clean_loss(run: Path, backbone: Path) -> float:
    """What anyone gets from the saved adapter with transformers and peft alone."""
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    model = AutoPeftModelForSequenceClassification.from_pretrained(run / "adapter", num_labels=2).eval()
    first, second, labels = zip(*ROWS, strict=True)
    inputs = AutoTokenizer.from_pretrained(backbone)(list(first), list(second), padding=True, return_tensors="pt")
    assert "token_type_ids" in inputs
    with torch.no_grad():
        return float(F.cross_entropy(model(**inputs).logits, torch.tensor(labels)))


@pytest.mark.parametrize(
    ("family", "peft"),
    [(family, "lora") for family in FAMILIES] + [("bert", "prompt"), ("bert", "prefix")],
)
def test_the_logged_loss_is_that_of_transformers_with_its_own_tokenizer(family: str, peft: str, tmp_path: Path) -> None:
    backbone = checkpoint(family, tmp_path / "model")
    settings = make_tiny(rounds=1, task=None, data=None, num_devices=2, cohort_size=2) | pairs(tmp_path / "data")
    attention = "eager" if family == "deberta-v2" else "sdpa"
    settings["backbone"] = {"name": str(backbone), "head": "model", "attention": attention}
    settings["evaluation"] = {"every": 1}
    settings["partition"] = "iid"
    kinds = {"lora": {"target_modules": "all-linear"}, "prompt": {"num_tokens": 3}, "prefix": {"num_tokens": 3}}
    settings["method"]["peft"] = {"kind": peft, **kinds[peft]}
    simulate(check(settings, "test"), tmp_path / "run")
    logged = [row["global_loss"] for row in read_rounds(tmp_path / "run").to_pylist() if row["global_loss"] is not None]
    assert logged[-1] == pytest.approx(clean_loss(tmp_path / "run", backbone), abs=1e-5)


def encoded(settings: dict[str, Any], folder: Path) -> EncodedSet:
    folder.mkdir()
    prepare(check(settings, "test"), folder)
    found = Federation.load(folder / "data").train
    assert isinstance(found, EncodedSet)
    return found


def of_pairs(tmp_path: Path, **changes: Any) -> EncodedSet:
    settings = make_tiny(task=None, data=None, num_devices=2, cohort_size=2, partition={"kind": "iid"}, **changes)
    return encoded(settings | pairs(tmp_path / "data"), tmp_path / "run")


def test_a_set_of_pairs_is_saved_with_the_tokenizers_own_types(tmp_path: Path) -> None:
    found = of_pairs(tmp_path)
    first, second, _ = zip(*ROWS, strict=True)
    own = load_tokenizer(Backbone())(list(first), list(second))["token_type_ids"]
    assert found.types is not None and found.types.tolist() == [type_ for sample in own for type_ in sample]
    batch = found.shard(np.arange(12)).batch(torch.tensor([3, 0]))
    assert batch.inputs["token_type_ids"].dtype == torch.int64
    types_of, masks = batch.inputs["token_type_ids"], batch.inputs["attention_mask"]
    for row, types, mask in zip((3, 0), types_of, masks, strict=True):
        assert types[mask.bool()].tolist() == own[row] and not types[~mask.bool()].any()


def test_shortened_samples_keep_the_types_of_the_tokens_that_stay(tmp_path: Path) -> None:
    shard = of_pairs(tmp_path).shard(np.arange(12)).shortened(9)
    batch = shard.batch(torch.arange(12))
    assert shard.lengths.tolist() == [9] * 12
    sep = load_tokenizer(Backbone()).sep_token_id
    for ids, types in zip(*(batch.inputs[name].tolist() for name in ("input_ids", "token_type_ids")), strict=True):
        assert types == [0] * (ids.index(sep) + 1) + [1] * (8 - ids.index(sep))


def test_single_texts_and_models_without_types_have_none(tmp_path: Path) -> None:
    assert encoded(make_tiny(), tmp_path / "single").types is None
    assert of_pairs(tmp_path, backbone={"config": TINY_LLAMA, "head": "causal_lm"}).types is None
    masked = make_tiny(backbone={"head": "masked_lm"}, data={"max_length": 40})
    assert encoded(masked, tmp_path / "masked").types is None, "a filled template is one text"


def test_sets_of_older_runs_have_no_types(tmp_path: Path) -> None:
    found = replace(of_pairs(tmp_path), types=None)
    found.save(tmp_path / "old")
    assert not (tmp_path / "old" / "types.npy").exists()
    batch = EncodedSet.load(tmp_path / "old").shard(np.arange(2)).batch(torch.arange(2))
    assert "token_type_ids" not in batch.inputs


def tiny(**config: Any) -> Backbone:
    return Backbone(init="random", tokenizer="minilm", config={"vocab_size": 30522, **config})


def test_which_models_take_types() -> None:
    assert takes_types(tiny(model_type="bert"), 1) and not takes_types(tiny(model_type="bert"), 0)
    assert not takes_types(tiny(model_type="llama"), 1) and not takes_types(tiny(model_type="mpnet"), 1)
    assert not takes_types(tiny(model_type="deberta-v2", type_vocab_size=0), 1), "it has no table"
    assert takes_types(tiny(model_type="gpt2"), 0), "it adds the embedding of token 0"
    with pytest.raises(ModelError, match="gives 2 token types, but the backbone has 1 .*own tokenizer"):
        takes_types(tiny(model_type="roberta", type_vocab_size=1), 1)


def test_types_reach_the_model_in_lanes_and_beside_embeddings(tmp_path: Path) -> None:
    shard = of_pairs(tmp_path).shard(np.arange(12))
    spec = tiny(model_type="bert", initializer_range=0.3, **SIZES)
    torch.manual_seed(0)
    model = TorchModel(ModelSpec(spec, Lora(r=2), classes(2), 0), from_config(spec, 2))
    model.train(False)
    long, short = shard.batch(torch.tensor([0, 5, 7])), shard.shortened(8).batch(torch.tensor([2]))
    losses = model.forward(long).losses
    untyped = Batch({name: value for name, value in long.inputs.items() if name != "token_type_ids"}, long.labels)
    assert not torch.allclose(losses, model.forward(untyped).losses, atol=1e-3)
    torch.testing.assert_close(model.forward(long, embeds=model.embed(long)).losses, losses)
    outs, _ = model.together([LaneBatch(model.read(), each) for each in (short, long)])
    torch.testing.assert_close(outs[1].losses, losses)
    torch.testing.assert_close(outs[0].losses, model.forward(short).losses)
