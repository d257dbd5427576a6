"""Errors about target_modules advise Linears and words that work when they are tried: no circles.

A block has H = 32; nothing is trained.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel

from fibec_ray.errors import ModelError
from fibec_ray.method import AXES

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {
    "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {**SIZES, "embedding_size": 32},
    "modernbert": {**SIZES, "cls_token_id": 1, "sep_token_id": 2},
    "mpnet": SIZES,
    "phi": SIZES,
    "gpt2": GPT2,
}
KINDS = [kind for kind, cls in AXES["peft"].items() if "target_modules" in cls.model_fields]


@cache
def backbone(family: str) -> Any:
    return AutoModel.from_config(AutoConfig.for_model(family, **FAMILIES[family]))


def refusal(family: str, kind: str, **settings: Any) -> str | None:
    """The error when a kind is attached to a backbone; None if it works."""
    try:
        AXES["peft"][kind](**settings).attach(copy.deepcopy(backbone(family)), None)
    except ModelError as error:
        return str(error)
    return None


def remedies(message: str) -> list[dict[str, Any]]:
    """Settings of the same kind that a message advises."""
    named = re.search(r"such as ([\w., ]+?)(?:;|$)", message)
    names = named[1].split(", ") if named else []
    found: list[dict[str, Any]] = [{"target_modules": names}] if names else []
    found += [{"target_modules": [name]} for name in names]
    words = message.partition("or set it to")[2]
    return found + [
        {"target_modules": word} for word in ("attention", "all-linear") if word in re.split(r"\W ?", words)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_advice_about_targets_works(kind: str, family: str) -> None:
    for asked in ({}, {"target_modules": ["nonsense"]}):
        message = refusal(family, kind, **asked)
        if message is None:
            assert not asked, "a module that is not there"
            continue
        assert message.startswith("method.peft")
        for remedy in remedies(message):
            assert refusal(family, kind, **remedy) is None, f"{message} -> {remedy}"
        for other in re.findall(r"choose (\w+)", message):
            assert refusal(family, other) is None, f"{message} -> {other}"
        assert remedies(message) or "choose " in message


@pytest.mark.parametrize("family", ["albert", "modernbert"])
@pytest.mark.parametrize("word", ["attention", "all-linear"])
def test_words_work_on_families_that_used_to_go_in_a_circle(word: str, family: str) -> None:
    assert refusal(family, "lora") is None
    assert refusal(family, "lora", target_modules=word) is None
