"""Encodes texts as tokens, once per run.

    plain    [CLS] a [SEP] (b [SEP])             for a classification head
    masked   [CLS] template with a, b [SEP]      the mask token's output predicts the answer word
    causal   [BOS] causal_template with a, b     the last token's output predicts the answer word

A sample that is too long loses tokens at the end of its longest text; template, mask and special tokens always stay.
(In plain mode the tokenizer cuts, and breaks ties between texts of equal length its own way.) The set records which
tokens are text, so samples can be cut further later. Spaces at the ends of texts, an artefact of SST-2's and MR's
sources, are removed. Token types are kept if the tokenizer gives them by default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.described import Prompted
from fibec_ray.data.encoded import EncodedSet, kept_tokens
from fibec_ray.data.examples import Examples
from fibec_ray.encoder import EncodeMode
from fibec_ray.errors import DataError

MASK = "<mask>"
"""Stands for the tokenizer's own mask token in a template."""


class Prompt(NamedTuple):
    """A filled template; places are character ranges (start, end) of the text."""

    text: str
    fields: list[tuple[int, int]]
    mask: tuple[int, int] | None


def fill(template: str, values: Mapping[str, str]) -> Prompt:
    """Fill a template. A text that itself contains `{b}` is left as it is.

    values: text for each placeholder; the value for MASK does not count as text.
    """
    text, fields, mask = "", [], None
    for piece in re.split(f"({'|'.join(map(re.escape, values))})", template):
        place = (len(text), len(text) + len(values.get(piece, piece)))
        text += values.get(piece, piece)
        if piece == MASK:
            mask = place
        elif piece in values:
            fields.append(place)
    return Prompt(text, fields, mask)


def text_numbers(prompt: Prompt, places: list[tuple[int, int]]) -> list[int]:
    """The number of each token's text; 0 for tokens outside the texts or that overlap the template."""
    fields = list(enumerate(prompt.fields, start=1))
    return [
        next((number for number, (first, last) in fields if first <= start < end <= last), 0) for start, end in places
    ]


CHUNK = 1024  # samples per call of the tokenizer: bounds the memory of its Python lists


class Tokenizer(Protocol):
    """The part of a fast transformers tokenizer that we use."""

    is_fast: bool
    mask_token: str | None
    mask_token_id: int | None
    pad_token_id: int | None
    eos_token_id: int | None
    sep_token_id: int | None
    unk_token_id: int | None

    def __call__(self, text: list[str], text_pair: list[str] | None = None, **options: Any) -> Any: ...


class Sample(NamedTuple):
    """One encoded sample."""

    tokens: list[int]
    texts: list[int]
    """the number of each token's text, as `EncodedSet` has it"""
    answer_at: int
    types: list[int] | None
    """of each token, as `EncodedSet` has them"""
    is_cut: bool = False


def encode(examples: Examples, task: Prompted, tokenizer: Tokenizer, mode: EncodeMode, max_length: int) -> EncodedSet:
    """Encode all rows as token ids, at most `max_length` tokens each.

    Raises DataError if the template does not fit, or a row has no token.
    """
    assert mode != "seq2seq", "encoder-decoders take tasks with responses"
    _check(tokenizer, task, mode)
    starts = range(0, len(examples), CHUNK)
    parts = (examples.take(np.arange(start, min(start + CHUNK, len(examples)))) for start in starts)
    samples = (_refuse_empty(_samples(rows, task, tokenizer, mode, max_length), rows, task) for rows in parts)
    return pack(samples, examples.answers, examples.true_difficulty, tokenizer)


def pack(
    parts: Iterable[Iterator[Sample]],
    labels: NDArray[Any],
    true_difficulty: NDArray[np.float32] | None,
    tokenizer: Tokenizer,
) -> EncodedSet:
    """Join encoded samples into one set.

    parts: the samples, a few at a time. labels (N, ...), true_difficulty (N,): of all of them.
    """
    lengths, answer_at, num_cut = [0], [], 0
    tokens, texts, types = [np.empty(0, np.int32)], [np.empty(0, np.uint8)], [np.empty(0, np.uint8)]
    typed = True
    for part in parts:
        samples = list(part)
        lengths += [len(sample.tokens) for sample in samples]
        answer_at += [sample.answer_at for sample in samples]
        num_cut += sum(sample.is_cut for sample in samples)
        tokens.append(np.concatenate([np.array(sample.tokens, dtype=np.int32) for sample in samples]))
        texts.append(np.concatenate([np.array(sample.texts, dtype=np.uint8) for sample in samples]))
        typed = typed and all(sample.types is not None for sample in samples)
        if typed:
            types.append(np.concatenate([np.array(sample.types, dtype=np.uint8) for sample in samples]))
    return EncodedSet(
        tokens=np.concatenate(tokens),
        offsets=np.cumsum(lengths, dtype=np.int64),
        labels=labels,
        answer_at=np.array(answer_at, dtype=np.int32),
        true_difficulty=true_difficulty,
        pad_id=_pad_id(tokenizer),
        texts=np.concatenate(texts),
        types=np.concatenate(types) if typed else None,
        num_cut=num_cut,
    )


def label_word_ids(task: Prompted, tokenizer: Tokenizer, mode: EncodeMode) -> list[int]:
    """One token id for each verbaliser word, in the order of the class ids.

    Byte-level tokenizers have different tokens for a word with and without a leading space. The spelling that fits the
    template is tried first, then the other; all words use the same one, so no class has an advantage.
    """
    assert mode != "plain", "a classification head has no label words"
    before = task.template[: task.template.index(MASK)] if mode == "masked" else task.causal_template
    prefixes = ("", " ") if mode == "masked" and not before.endswith(" ") else (" ", "")
    tries: list[list[list[int]]] = [
        [tokenizer([prefix + word], add_special_tokens=False)["input_ids"][0] for word in task.verbaliser]
        for prefix in prefixes
    ]
    fitting = [ids for ids in tries if all(_is_one_word(word_ids, tokenizer) for word_ids in ids)]
    if not fitting:
        bad = next(k for k, ids in enumerate(tries[0]) if not _is_one_word(ids, tokenizer))
        raise DataError(
            f"task {task.name}: the verbaliser word '{task.verbaliser[bad]}' is {len(tries[0][bad])} tokens or unknown "
            "to this tokenizer; choose a word that is one token"
        )
    ids = [word_ids[0] for word_ids in fitting[0]]
    for k, id_ in enumerate(ids):
        if id_ in ids[:k]:
            raise DataError(
                f"task {task.name}: the verbaliser words '{task.verbaliser[ids.index(id_)]}' and "
                f"'{task.verbaliser[k]}' are the same token for this tokenizer; choose words that differ"
            )
    return ids


def _samples(
    rows: Examples, task: Prompted, tokenizer: Tokenizer, mode: EncodeMode, max_length: int
) -> Iterator[Sample]:
    texts_a = [text.strip() for text in rows.texts_a]
    texts_b = None if rows.texts_b is None else [text.strip() for text in rows.texts_b]
    if mode == "plain":
        cut = {"truncation": "longest_first", "max_length": max_length, "return_special_tokens_mask": True}
        encoded = tokenizer(texts_a, texts_b, padding=False, **cut)
        texts = _plain_texts(encoded, len(rows), tokenizer.is_fast)
        are_cut = _plain_cuts(encoded, texts_a, texts_b, tokenizer, max_length)
        plain = zip(encoded["input_ids"], texts, _types(encoded, len(rows)), are_cut, strict=True)
        return (Sample(ids, numbers, 0, types, is_cut) for ids, numbers, types, is_cut in plain)
    template = task.template if mode == "masked" else task.causal_template
    prompts = [
        fill(template, {"{a}": a, "{b}": b, MASK: tokenizer.mask_token or ""})
        for a, b in zip(texts_a, texts_b or [""] * len(texts_a), strict=True)
    ]
    encoded = tokenizer(
        [prompt.text for prompt in prompts],
        padding=False,
        truncation=False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,  # no warning about samples that are too long: they are cut below
    )
    columns = (encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"])
    parts = zip(prompts, *columns, _types(encoded, len(rows)), strict=True)
    return (_sample(*part, tokenizer, task, max_length) for part in parts)


def _sample(
    prompt: Prompt,
    ids: list[int],
    places: list[tuple[int, int]],
    special: list[int],
    types: list[int] | None,
    tokenizer: Tokenizer,
    task: Prompted,
    max_length: int,
) -> Sample:
    if prompt.mask is None:  # the answer comes next, so remove a closing token that the tokenizer appended
        while len(ids) > 1 and special[-1]:
            ids, places, special = ids[:-1], places[:-1], special[:-1]
    texts = text_numbers(prompt, places)
    kept = kept_tokens(np.array(texts, dtype=np.uint8), max_length).tolist()
    if len(kept) > max_length:
        raise DataError(
            f"data.max_length: {max_length} tokens have no room for a text beside task {task.name}'s template; "
            f"set at least {len(kept)}"
        )
    is_cut = len(kept) < len(ids)
    tokens, texts = [ids[i] for i in kept], [texts[i] for i in kept]
    types = None if types is None else [types[i] for i in kept]
    if prompt.mask is None:
        return Sample(tokens, texts, len(kept) - 1, types, is_cut)
    start, end = prompt.mask
    is_mask = [ids[i] == tokenizer.mask_token_id and places[i][0] < end and places[i][1] > start for i in kept]
    return Sample(tokens, texts, is_mask.index(True), types, is_cut)


def _plain_texts(encoded: Any, count: int, is_fast: bool) -> list[list[int]]:
    """The text number of each token, for the tokenizer's own single texts and pairs."""
    if is_fast:
        return [[0 if at is None else at + 1 for at in encoded.sequence_ids(i)] for i in range(count)]
    return [_between_special(mask) for mask in encoded["special_tokens_mask"]]


def _plain_cuts(
    encoded: Any, texts_a: list[str], texts_b: list[str] | None, tokenizer: Tokenizer, max_length: int
) -> list[bool]:
    """Whether the tokenizer cut each sample."""
    if tokenizer.is_fast:
        return [bool(encoding.overflowing) for encoding in encoded.encodings]
    full = [i for i, ids in enumerate(encoded["input_ids"]) if len(ids) >= max_length]
    second = None if texts_b is None else [texts_b[i] for i in full]
    whole = tokenizer([texts_a[i] for i in full], second, verbose=False)["input_ids"] if full else []
    too_long = {i for i, ids in zip(full, whole, strict=True) if len(ids) > max_length}
    return [i in too_long for i in range(len(texts_a))]


def _types(encoded: Any, count: int) -> list[list[int]] | list[None]:
    """Token types of each sample; None if the tokenizer gives none."""
    found: list[list[int]] | None = encoded.get("token_type_ids")
    return [None] * count if found is None else found


def _refuse_empty(samples: Iterator[Sample], rows: Examples, task: Prompted) -> Iterator[Sample]:
    """Raise DataError for a sample without tokens: a blank text with a tokenizer that adds no special tokens."""
    for i, sample in enumerate(samples):
        if not sample.tokens:
            where = f"task {task.name}" if rows.origin is None else rows.origin.place(i)
            columns = " and ".join(f"'{column}'" for column in task.text_columns)
            raise DataError(
                f"{where}, {'columns' if rows.texts_b else 'column'} {columns}: the text {rows.texts_a[i][:80]!r} has "
                "no token for this tokenizer; fill it in, or remove the row"
            )
        yield sample


def _between_special(mask: list[int]) -> list[int]:
    """[1, 0, 0, 1, 0, 1] -> [0, 1, 1, 0, 2, 0]: each run between special tokens is a text."""
    found, number, inside = [], 0, False
    for special in mask:
        number += not special and not inside
        inside = not special
        found.append(0 if special else number)
    return found


def _check(tokenizer: Tokenizer, task: Prompted, mode: EncodeMode) -> None:
    if mode == "masked" and (tokenizer.mask_token is None or tokenizer.mask_token_id is None):
        raise DataError(
            f"task {task.name}: the tokenizer has no mask token; use a masked language model, or set backbone.head"
        )
    if mode != "plain" and not tokenizer.is_fast:
        raise DataError(f"task {task.name}: prompts need a fast tokenizer (tokenizer.json beside the model)")


def _is_one_word(ids: list[int], tokenizer: Tokenizer) -> bool:
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def _pad_id(tokenizer: Tokenizer) -> int:
    """The padding id. Any valid id works because the attention mask is 0 there; Llama has no padding token."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((id_ for id_ in known if id_ is not None), 0)
