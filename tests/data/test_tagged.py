"""Words with tags: tables become rows or one clear error, rows become tokens with labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fibec_ray.data import tagging
from fibec_ray.data.encode_tagged import encode_tagged
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.tagged import Span, Tagged, entity_types, most_frequent_types, spans
from fibec_ray.errors import DataError
from fibec_ray.model_types import NO_LABEL
from fibec_ray.models.backbone import load_tokenizer
from fibec_ray.models.spec import Backbone
from fibec_ray.tasks import load, parse_task

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
WORDS = [["Ada", "Lovelace", "saw", "Paris"], ["Rain", "."]]
TAGS = [[1, 2, 0, 3], [0, 0]]
NAMED = [[NAMES[tag] for tag in row] for row in TAGS]


def task(**changes: Any) -> Any:
    return parse_task({"name": "ner", "kind": "token_labels", "label_names": NAMES, **changes})


def rows_of(path: Path, **data: Any) -> Tagged:
    good = write(path.parent / "good.parquet", WORDS, TAGS)
    train, _ = load(task(), DataConfig(train=str(path), test=str(good), **data), 0)
    return train


def write(path: Path, words: Any, tags: Any, names: list[str] | None = None) -> Path:
    table = pa.table({"tokens": words, "ner_tags": tags})
    if names is not None:
        feature = {"_type": "List", "feature": {"_type": "ClassLabel", "names": names}}
        features = {"tokens": {"_type": "List", "feature": {"_type": "Value", "dtype": "string"}}, "ner_tags": feature}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def found(rows: Tagged) -> list[tuple[list[str], list[int]]]:
    return sorted(zip(rows.words, rows.tags, strict=True))


def test_words_and_tags_come_from_lists_names_or_text(tmp_path: Path) -> None:
    wanted = sorted(zip(WORDS, TAGS, strict=True))
    assert found(rows_of(write(tmp_path / "ids.parquet", WORDS, TAGS))) == wanted
    assert found(rows_of(write(tmp_path / "names.parquet", WORDS, NAMED))) == wanted
    other = ["B-LOC", "I-LOC", "O", "B-PER", "I-PER"]  # a file's own order of names
    ids = [[other.index(name) for name in row] for row in NAMED]
    assert found(rows_of(write(tmp_path / "other.parquet", WORDS, ids, other))) == wanted
    lines = [f"{' '.join(words)},{' '.join(names)}" for words, names in zip(WORDS, NAMED, strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["tokens,ner_tags", *lines]))
    assert found(rows_of(tmp_path / "rows.csv")) == wanted
    records = [json.dumps({"tokens": w, "ner_tags": t}) for w, t in zip(WORDS, NAMED, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(records))
    assert found(rows_of(tmp_path / "rows.jsonl")) == wanted


def test_rows_without_words_or_tags_are_left_out_if_the_user_wants_it(tmp_path: Path) -> None:
    path = write(tmp_path / "tags.parquet", [*WORDS, ["a"]], [*TAGS, None])
    with pytest.raises(DataError, match=r"tags.parquet, column 'ner_tags': no tags in row 2; .*drop_missing=true"):
        rows_of(path)
    assert found(rows_of(path, drop_missing=True)) == sorted(zip(WORDS, TAGS, strict=True))
    path = write(tmp_path / "rows.parquet", [*WORDS, []], [*TAGS, []])
    with pytest.raises(DataError, match=r"rows.parquet, column 'tokens': no words in row 2; .*drop_missing=true"):
        rows_of(path)
    rows = rows_of(path, drop_missing=True)
    assert found(rows) == sorted(zip(WORDS, TAGS, strict=True))
    assert rows.origin is not None and rows.origin.dropped == 1


@pytest.mark.parametrize(
    ("words", "tags", "says"),
    [
        (WORDS, [[1, 2, 0], [0, 0]], r"column 'ner_tags': 3 tags in row 0 for 4 words; give each word one tag"),
        (WORDS, [[1, 2, 0, 9], [0, 0]], r"tag 9 in row 0; allowed: 0 to 4 \(O, B-PER"),
        (WORDS, [NAMED[0], ["O", "B-LOX"]], r"tag 'B-LOX' in row 1 is unknown to the task; did you mean 'B-LOC'"),
        (WORDS, [[1.5, 2, 0, 3], [0, 0]], r"tag 1.5 in row 0; give names or whole numbers"),
        (WORDS, [[1, None, 0, 3], [0, 0]], r"tag None in row 0; give names or whole numbers"),
        ([1, 2], TAGS, r"column 'tokens': values of type int64; give a list in each row"),
        ([[1, 2, 3, 4], [5, 6]], TAGS, r"column 'tokens': 1 in row 0 is not text"),
        ([[], []], [[], []], r"no words in row 0"),
    ],
)
def test_what_does_not_fit_is_one_error_with_file_column_and_row(
    words: Any, tags: Any, says: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        rows_of(write(tmp_path / "rows.parquet", words, tags))
    assert "rows.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("words,ner_tags\na b,O O\n")
    with pytest.raises(DataError, match=r"no column 'tokens'; it has words, ner_tags; .*set data.text or data.label"):
        rows_of(tmp_path / "rows.csv")


def test_spans_and_types() -> None:
    assert spans(["B-A", "I-A", "B-A", "O", "I-B", "I-A", "O"]) == [
        Span("A", 0, 2), Span("A", 2, 3), Span("B", 4, 5), Span("A", 5, 6),
    ]  # fmt: skip
    assert entity_types(NAMES) == ("PER", "LOC", "O") and entity_types(("NOUN", "VERB")) == ("NOUN", "VERB", "O")
    assert most_frequent_types([[1, 2, 2, 3, 0, 3], [0, 0], [3, 1]], NAMES).tolist() == [1, 2, 0]


def rows(words: list[list[str]], tags: list[list[int]]) -> Tagged:
    return Tagged(words, tags, np.zeros(len(words), np.int64))


def encoded(made: Tagged, max_length: int = 64) -> EncodedSet:
    return encode_tagged(made, load_tokenizer(Backbone()), "ner", max_length)


def test_a_tag_goes_to_the_first_token_of_its_word() -> None:
    tokenizer = load_tokenizer(Backbone())
    made = rows([["Lovelace", "saw", "\u200b", "Paris"]], [[1, 0, 2, 3]])
    batch = encoded(made).shard(np.arange(1)).batch(torch.tensor([0]))
    shown = tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"][0].tolist())
    assert shown == ["[CLS]", "love", "##lace", "saw", "[UNK]", "paris", "[SEP]"]
    assert batch.labels.tolist() == [[NO_LABEL, 1, NO_LABEL, 0, 2, 3, NO_LABEL]]


def test_tokens_and_tags_are_cut_together_and_saved(tmp_path: Path) -> None:
    made = encoded(rows([["Lovelace", "saw", "Paris"], ["a"]], [[1, 0, 3], [4]]), max_length=5)
    assert made.num_cut == 1 and made.lengths.tolist() == [5, 3]
    made.save(tmp_path / "set")
    again = EncodedSet.load(tmp_path / "set")
    assert again.form == made.form and again.form.batch(2, 3).labels.shape == (2, 3)
    shard = again.shard(np.arange(2))
    assert shard.batch(torch.tensor([1, 0])).labels.tolist() == [
        [NO_LABEL, 4, NO_LABEL, NO_LABEL, NO_LABEL],
        [NO_LABEL, 1, NO_LABEL, 0, NO_LABEL],
    ]
    short = shard.shortened(3).batch(torch.tensor([0, 1]))
    assert short.labels.tolist() == [[NO_LABEL, 1, NO_LABEL], [NO_LABEL, 4, NO_LABEL]]
    assert short.inputs["input_ids"].shape == (2, 3)


def test_byte_level_tokenizers_read_words_as_in_a_text() -> None:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = level
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=level.alphabet(), show_progress=False)
    made.train_from_iterator(["rain in Paris a a rain a"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
    found = encode_tagged(rows([["rain", "in", "Paris"]], [[0, 0, 3]]), tokenizer, "ner", 16)
    assert tokenizer.convert_ids_to_tokens(found.tokens.tolist()) == ["rain", "Ġin", "ĠParis"]
    assert found.tags is not None and found.tags.tolist() == [0, 0, 3]


def test_a_word_without_a_token_is_one_error() -> None:
    made = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="a")
    with pytest.raises(DataError, match="task ner: word 1, '', has no token for this tokenizer; replace the word"):
        encode_tagged(rows([["a", ""]], [[0, 0]]), tokenizer, "ner", 16)


class Slow:
    is_fast = False


def test_a_slow_tokenizer_is_one_error() -> None:
    with pytest.raises(DataError, match="task ner: needs a fast tokenizer .* set backbone.tokenizer"):
        encode_tagged(rows(WORDS, TAGS), Slow(), "ner", 16)


def test_generated_rows_are_seeded_distinct_and_tagged_as_written() -> None:
    settings = tagging.TaggingSettings(num_train=60, label_noise=0.1)
    made = tagging.generate(60, 1, "train", settings)
    assert made.words == tagging.generate(60, 1, "train", settings).words
    assert len({tuple(words) for words in made.words}) == 60
    clean = tagging.generate(60, 1, "train", tagging.TaggingSettings(num_train=60))
    wrong = [row for row in range(60) if made.tags[row] != clean.tags[row]]
    assert made.words == clean.words and len(wrong) == 6
    assert made.true_difficulty is not None and (made.true_difficulty[wrong] == 1).all()
    for words, tags in zip(clean.words, clean.tags, strict=True):
        named = [tagging.LABEL_NAMES[tag] for tag in tags]
        assert len(words) == len(tags) and "B-TIME" in named
    test = tagging.generate(60, 1, "test", settings)
    assert not {tuple(words) for words in made.words} & {tuple(words) for words in test.words}
