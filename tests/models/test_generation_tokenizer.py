"""A tokenizer for generation gives open prompts, knows the end token, and is the same when it is loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fibec_ray.models.backbone import load_tokenizer
from fibec_ray.models.generation_tokenizer import for_generation
from fibec_ray.models.spec import Backbone

TEXT = "Sort: b a 12."


def byte_level(around: str) -> Any:
    """As GPT-2's and Llama's. around: what it adds to a text, such as '<bos> $A <eos>'."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<bos>", "<eos>"]
    vocab = {token: i for i, token in enumerate(letters)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = [(name, vocab[name]) for name in ("<bos>", "<eos>")]
    raw.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")


@pytest.mark.parametrize("around", ["$A", "<bos> $A"])
def test_a_tokenizer_that_fits_stays_as_it_is(around: str) -> None:
    tokenizer = byte_level(around)
    assert for_generation(tokenizer, tokenizer.eos_token_id) is tokenizer


@pytest.mark.parametrize("around", ["$A <eos>", "<bos> $A <eos>"])
def test_a_closing_token_is_not_appended(around: str, tmp_path: Path) -> None:
    tokenizer = byte_level(around)
    whole = tokenizer(TEXT)["input_ids"]
    for_generation(tokenizer, tokenizer.eos_token_id).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXT)["input_ids"] == whole[:-1] and tokenizer(TEXT)["input_ids"] == whole
    assert again.decode(again(TEXT)["input_ids"], skip_special_tokens=True) == TEXT


def test_an_encoders_separator_becomes_the_end_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(Backbone(tokenizer="minilm"))
    for_generation(tokenizer, tokenizer.sep_token_id).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"][:-1]
    assert (again.eos_token, again.pad_token, len(again)) == ("[SEP]", tokenizer.pad_token, len(tokenizer))
    assert tokenizer.eos_token is None
