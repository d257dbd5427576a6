"""A tokenizer that other programs generate with: it leaves prompts open and knows the token that ends an answer."""

from __future__ import annotations

from typing import Any


def for_generation(tokenizer: Any, end: int) -> Any:
    """The tokenizer itself if it fits, otherwise a copy of it that does.

    Tokenizers of encoders append a closing token ([SEP]), and some lack an end-of-text token. A decoder was trained on
    prompts without the closing token, and on answers that end with `end`. tokenizer: a fast one of transformers.
    """
    opening, closes = _special(tokenizer)
    if not closes and tokenizer.eos_token_id == end:
        return tokenizer
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if closes:
        names = tokenizer.convert_ids_to_tokens(opening)
        inner.post_processor = processors.TemplateProcessing(
            single=[*names, "$A"],
            pair=[*names, "$A", "$B"],
            special_tokens=list(zip(names, opening, strict=True)),
        )
    kept = {
        name: getattr(tokenizer, name)
        for name in ("bos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
        if getattr(tokenizer, name) is not None
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=tokenizer.convert_ids_to_tokens(end),
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **kept,
    )


def _special(tokenizer: Any) -> tuple[list[int], bool]:
    """The ids that the tokenizer puts before a text, and whether it appends any."""
    made = tokenizer("a", return_special_tokens_mask=True)
    ids, special = made["input_ids"], made["special_tokens_mask"]
    num_opening = next((at for at, mark in enumerate(special) if not mark), len(ids))
    return ids[:num_opening], bool(special[-1]) and num_opening < len(ids)
