"""Checks before a run that a backbone has an embedding for each token, position and token type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fibec_ray.encoder import Encoder
from fibec_ray.errors import ModelError
from fibec_ray.models.architecture import SUPPORTED, inputs_of
from fibec_ray.models.backbone import from_config
from fibec_ray.models.settings import BackboneSettings

TABLES = ("position_embeddings", "embed_positions", "wpe")
"""Last parts of the names of position tables."""
LIMITS = ("max_position_embeddings", "max_seq_len")
"""Settings that limit positions in families without a position table."""


def check_sizes(spec: BackboneSettings, tokenizer: Any, max_length: int, num_virtual: int = 0) -> int:
    """Return the number of token embeddings. Raises ModelError if tokens or positions are too few.

    num_virtual: tokens that the PEFT kind puts before a sample's.
    """
    with torch.device("meta"):
        base = from_config(spec, num_classes=2)
    rows = _rows(base)
    if spec.tokenizer is not None and len(tokenizer) > rows:
        raise ModelError(
            f"backbone.tokenizer: {spec.tokenizer} has {len(tokenizer)} tokens, but the backbone has {rows} "
            "embeddings; use the backbone's own tokenizer, or set backbone.config.vocab_size"
        )
    check_ids(rows, tokenizer, {"the padding token": tokenizer.pad_token_id})
    positions = positions_of(base)
    if positions is None or max_length + num_virtual <= positions:
        return rows
    if num_virtual == 0:
        raise ModelError(f"data.max_length: {max_length} tokens, but the backbone has {positions} positions; lower it")
    raise ModelError(
        f"data.max_length: {max_length} tokens and {num_virtual} virtual ones (method.peft), but the backbone has "
        f"{positions} positions; lower one of the two"
    )


def check_ids(rows: int, tokenizer: Any, ids: Mapping[str, int | None]) -> None:
    """Raise ModelError for a token without an embedding. rows: the backbone's embeddings. ids: role -> token id."""
    for what, token in ids.items():
        if token is not None and token >= rows:
            raise ModelError(
                f"backbone.tokenizer: {what} '{tokenizer.convert_ids_to_tokens(token)}' has the id {token}, but the "
                f"backbone has {rows} embeddings; set backbone.tokenizer to one that fits, or save the checkpoint "
                "again after `model.resize_token_embeddings(len(tokenizer))`"
            )


def takes_types(spec: BackboneSettings, highest: int) -> bool:
    """True if the model's scores depend on token types up to `highest`. Raises ModelError if it has too few types.

    Some families have no table of types and add the token embedding with that number (GPT-2), so type 0 is not neutral
    for them.
    """
    names, config = inputs_of(spec)
    if "token_type_ids" not in names:
        return False
    size: int | None = getattr(config, "type_vocab_size", None)
    if size is None:
        return True
    if size == 0 or highest == 0:  # DeBERTa without a table ignores them
        return False
    if highest >= size:
        raise ModelError(
            f"backbone.tokenizer: it gives {highest + 1} token types, but the backbone has {size} "
            "(type_vocab_size); use the backbone's own tokenizer"
        )
    return True


def check_used(sets: Sequence[Any], encoder: Encoder, words: Sequence[int] = ()) -> None:
    """Raise ModelError if encoded texts or label words have tokens without an embedding."""
    assert encoder.num_embeddings is not None
    largest = max((int(part.tokens.max()) for part in sets if part.tokens.size), default=None)
    used = {"the token": largest, "the verbaliser's word": max(words, default=None)}
    check_ids(encoder.num_embeddings, encoder.tokenizer, used)


def with_types(spec: BackboneSettings, sets: Sequence[Any]) -> list[Any]:
    """Encoded texts with token types if the backbone uses them. Raises ModelError for types that it lacks.

    A model with a table of types uses 0 by default, so all-zero types are left out.
    """
    highest = max((int(part.types.max(initial=0)) for part in sets if part.types is not None), default=None)
    if highest is not None and takes_types(spec, highest):
        return list(sets)
    return [part if part.types is None else replace(part, types=None) for part in sets]


def positions_of(base: nn.Module) -> int | None:
    """Number of positions of a model; None: no limit."""
    found = [limit for limit in (_table(base), _setting(base.config)) if limit is not None]
    return min(found, default=None)


def _table(base: nn.Module) -> int | None:
    """Usable rows of the position table; some families skip rows at its beginning."""
    for name, child in base.named_modules():
        if name.rpartition(".")[2] in TABLES and isinstance(getattr(child, "weight", None), Tensor):
            padding = getattr(child, "padding_idx", None)
            unused = getattr(child, "offset", 0 if padding is None else padding + 1)
            return int(child.get_parameter("weight").shape[0]) - int(unused)
    return None


def _setting(config: Any) -> int | None:
    """The configured limit of positions; None for families with relative positions, such as DeBERTa without a table
    (XLNet: -1).
    """
    if not getattr(config, "position_biased_input", True):
        return None
    given = [getattr(config, name, None) for name in LIMITS]
    return min((limit for limit in given if isinstance(limit, int) and limit > 0), default=None)


def _rows(base: Any) -> int:
    try:
        return int(base.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError) as error:
        raise ModelError(f"backbone: {base.config.model_type} has no table of token embeddings; {SUPPORTED}") from error
