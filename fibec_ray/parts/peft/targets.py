"""The modules that an adapter is attached to, by model family.

The default for LoRA is the query and value projection of every block (Hu et al., ICLR 2022, section 7.1 and table 5:
the best use of a fixed number of parameters). `attention` is all four projections of that section (W_q, W_k, W_v, W_o).
`all-linear` is every product in the blocks, as in QLoRA (Dettmers et al., NeurIPS 2023). The names are those in
transformers' modeling_<family>.py.

GPT-2's c_attn is one product for query, key and value: adapting it adapts all three with one A. (The paper's own code
for GPT-2 leaves out the key.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from fibec_ray.blocks import block_paths
from fibec_ray.errors import ModelError
from fibec_ray.heads import reads_images
from fibec_ray.parts.peft.base import is_product

Word = Literal["attention", "all-linear"]
READ_RAW = {kind: ("out_proj",) for kind in ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")} | {
    "swinv2": ("continuous_position_bias_mlp.0", "continuous_position_bias_mlp.2")
}
"""Linears that are not adapted, by transformers' `model_type`: kernels read their weights directly, or their inputs are
positions and not samples.
"""
NUMBER = re.compile(r"\.\d+\.")
"""a number in a module's path: of a block, or of one of a block's parts"""


class Family(NamedTuple):
    """Endings of module names: the query and value projections, and all attention projections."""

    query_value: tuple[str, ...]
    attention: tuple[str, ...]


_SPLIT = Family(("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"))
_OPT = Family(("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "out_proj"))
_T5 = Family(("q", "v"), ("q", "k", "v", "o"))
_BERT = Family(("query", "value"), ("query", "key", "value", "attention.output.dense"))
FAMILIES: dict[str, Family] = {
    "llama": _SPLIT,
    "mistral": _SPLIT,
    "qwen2": _SPLIT,
    "opt": _OPT,
    "gpt2": Family(("c_attn",), ("c_attn", "attn.c_proj")),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": Family(("q_lin", "v_lin"), ("q_lin", "k_lin", "v_lin", "out_lin")),
    "electra": _BERT,
    "camembert": _BERT,
    "albert": Family(("query", "value"), ("query", "key", "value", "attention.dense")),
    "mpnet": Family(("attn.q", "attn.v"), ("attn.q", "attn.k", "attn.v", "attn.o")),
    "deberta": Family(("in_proj",), ("in_proj", "attention.output.dense")),
    "deberta-v2": Family(
        ("query_proj", "value_proj"), ("query_proj", "key_proj", "value_proj", "attention.output.dense")
    ),
    "modernbert": Family(("attn.Wqkv",), ("attn.Wqkv", "attn.Wo")),
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "bart": _OPT,
    "pegasus": _OPT,
    "bloom": Family(("query_key_value",), ("query_key_value", "self_attention.dense")),
}
"""Module names of text models by transformers' `model_type`."""
IMAGE_FAMILIES = (_SPLIT, Family(("query", "value"), ("query", "key", "value", "attention.output.dense")))
"""Default module names of image models. Releases of transformers name the same modules differently."""


def query_and_value(module: Any) -> list[str] | None:
    """The query and value projections of a transformers model; None for an unknown family of text models.

    Image models without attention, such as ConvNeXt, have all Linears of their blocks adapted.
    """
    if family := _family(module):
        return list(family.query_value)
    return linears_of_blocks(module) or None if reads_images(module) else None


def _family(module: Any) -> Family | None:
    if not reads_images(module):
        return FAMILIES.get(module.config.model_type)
    there = linears_of_blocks(module)
    fits = (
        all(any(f".{name}".endswith(f".{end}") for name in there) for end in each.attention) for each in IMAGE_FAMILIES
    )
    return next((family for family, fitting in zip(IMAGE_FAMILIES, fits, strict=True) if fitting), None)


def resolve(wanted: Word | Sequence[str], module: Any) -> list[str]:
    """Resolve `wanted` to endings of module names, each found in the model. Raises ModelError."""
    if wanted == "all-linear":
        if found := linears_of_blocks(module):
            return found
        raise refusal(f"{wanted} finds no modules", module)
    if isinstance(wanted, str):
        family = _family(module)
        if family is None:
            raise refusal(f"{wanted} is not known for {module.config.model_type}", module)
        return list(family.attention)
    names = [name for name, _ in module.named_modules()]
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise refusal(f"no module of this {module.config.model_type} is called '{target}'", module, target)
    return list(wanted)


def linears_of_blocks(module: Any) -> list[str]:
    """Names of the products within a block, such as self_attn.q_proj: the part after the last number in a path."""
    inside = tuple(f"{path}." for path in block_paths(module))
    products = [name for name, child in module.named_modules() if is_product(child)]
    numbered = [NUMBER.split(name)[1:] for name in products if not inside or name.startswith(inside)]
    raw: tuple[str, ...] = READ_RAW.get(module.config.model_type, ())
    return sorted({parts[-1] for parts in numbered if parts and not parts[-1].endswith(raw)})


def refusal(what: str, module: Any, target: str = "", there: list[str] | None = None) -> ModelError:
    """The ModelError, with the names that are allowed. there: these names, if the module has changed since."""
    there = linears_of_blocks(module) if there is None else there
    if not there:
        return ModelError(
            f"method.peft.target_modules: {what}; the blocks of this {module.config.model_type} have no Linears, so "
            "choose another backbone"
        )
    near = get_close_matches(target, there + [name.rpartition(".")[2] for name in there], n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    family = _family(module)
    words = [f"attention ({', '.join(family.attention)})"] if family else []
    return ModelError(
        f"method.peft.target_modules: {what}{hint}; name Linears of this backbone, such as {', '.join(there)}; or set "
        f"it to {' or '.join([*words, 'all-linear'])}"
    )
