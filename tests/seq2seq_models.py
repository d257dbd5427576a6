"""Tiny encoder-decoders, and samples for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import TEXTS

from fibec_ray.data.encoded import EncodedSet
from fibec_ray.data.source_target import SourceTargetSet, SourceTargetShard
from fibec_ray.models.backbone import prepare
from fibec_ray.models.seq2seq import Seq2SeqModel
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.lora import Lora

T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
BART = {
    "vocab_size": 50, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {"t5": T5, "mt5": T5, "umt5": T5, "bart": BART, "pegasus": BART}
SOURCES = [[5, 6, 7, 8, 1], [9, 8, 1], [4, 4, 4, 4, 4, 1], [8, 1]]
TARGETS = [[9, 10, 1], [11, 12, 13, 14, 15, 1], [7, 1], [21, 1]]
ALL = torch.arange(4)


def shard_of(sources: list[list[int]], targets: list[list[int]]) -> SourceTargetShard:
    samples = [source + target for source, target in zip(sources, targets, strict=True)]
    tokens = np.array([token for sample in samples for token in sample], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, samples)])
    answer_at = np.array([len(source) - 1 for source in sources], dtype=np.int32)
    labels, texts = np.zeros(len(samples), np.int64), np.zeros(len(tokens), np.uint8)
    whole = EncodedSet(tokens, offsets, labels, answer_at, None, 0, texts, answers_are_texts=True)
    return SourceTargetSet.of(whole).shard(np.arange(len(samples)))


SHARD = shard_of(SOURCES, TARGETS)


def made(family: str = "t5", peft: Peft | None = None) -> Seq2SeqModel:
    config = {"model_type": family, **FAMILIES[family]}
    backbone = Backbone(init="random", config=config, tokenizer="minilm", head="seq2seq")
    folder = prepare(backbone, 0, 0, Path(os.environ["FIBEC_RAY_CACHE"]))
    model = Seq2SeqModel(ModelSpec(backbone, peft or Lora(r=2, dropout=0), TEXTS), folder)
    with torch.no_grad():
        for value in model.trainable.values():
            value.copy_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    model.train(False)
    return model
