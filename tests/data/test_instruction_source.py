"""Instructions from files of every format, from the hub's library and embedded; and every way in which that fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
import yaml

from fibec_ray.data import exercises
from fibec_ray.data.encode_instructions import encode_instructions, end_id
from fibec_ray.data.examples import Instructions
from fibec_ray.data.exercises import KINDS, WORDS, ExerciseSettings, generate
from fibec_ray.data.instructions import Columns, InstructionFormat
from fibec_ray.data.settings import DataConfig
from fibec_ray.errors import DataError
from fibec_ray.models.backbone import load_tokenizer
from fibec_ray.models.spec import Backbone
from fibec_ray.tasks import FromInstructions, Task, load, parse_task

TASKS = Path(__file__).parents[2] / "configs" / "tasks"
DOLLY = {
    "instruction": [f"what is {i}?" for i in range(10)],
    "context": ["", "a book", None, "a lake", "", "", "x", "y", "z", ""],
    "response": [f"it is {i}." for i in range(10)],
    "category": ["open_qa", "closed_qa"] * 5,
}
ALPACA = {"instruction": DOLLY["instruction"], "input": [""] * 10, "output": DOLLY["response"]}


def task_of(name: str) -> Task:
    return parse_task(yaml.safe_load((TASKS / f"{name}.yaml").read_text()))


def write(path: Path, columns: dict[str, Any]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")
    return path


def told(rows: Instructions) -> list[tuple[str, str, str, str]]:
    names = [rows.categories[label] for label in rows.labels]
    return list(zip(rows.instructions, rows.inputs, rows.responses, names, strict=True))


# --- where rows come from


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_one_file_with_dollys_columns(suffix: str, tmp_path: Path) -> None:
    """A tenth is held out by lot; a context that is null is none."""
    config = DataConfig(path=str(write(tmp_path / f"mine{suffix}", DOLLY)))
    train, test = load(task_of("dolly"), config, seed=0)
    assert (len(train), len(test)) == (9, 1)
    assert train.categories == test.categories == ("closed_qa", "open_qa")
    rows = [tuple(value or "" for value in row) for row in zip(*DOLLY.values(), strict=True)]
    assert sorted(told(train) + told(test)) == sorted(rows)
    again = load(task_of("dolly"), config, seed=0)
    assert told(again[1]) == told(test)


def test_alpacas_own_file_is_one_array(tmp_path: Path) -> None:
    rows = pa.table(ALPACA).to_pylist()
    path = tmp_path / "alpaca_data.json"
    path.write_text(json.dumps(rows, indent=4), encoding="utf-8")
    train, test = load(task_of("alpaca"), DataConfig(path=str(path)), seed=0)
    assert len(train) + len(test) == 10
    path.write_text("[3]", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as jsonl .entry 0: int where an object was expected"):
        load(task_of("alpaca"), DataConfig(path=str(path)), seed=0)


def test_alpacas_columns_have_no_categories(tmp_path: Path) -> None:
    config = DataConfig(path=str(write(tmp_path / "mine.jsonl", ALPACA)), test_fraction=0.3, max_test=2)
    train, test = load(task_of("alpaca"), config, seed=0)
    assert (len(train), len(test)) == (7, 2) and not train.has_categories


def test_a_folder_with_a_split_for_the_test(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", DOLLY)
    train, test = load(task_of("dolly"), DataConfig(path=str(tmp_path), eval_split="test"), seed=0)
    assert told(train) == told(test) and len(test) == 10


def test_columns_of_other_names(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", {"q": ["a", "b"], "a": ["c", "d"], "kind": [1, 2], "input": ["e", "f"]})
    columns = Columns(instruction="q", response="a", category="kind", input="")
    train, test = load(task_of("dolly"), DataConfig(path=str(tmp_path / "mine.jsonl"), columns=columns), 0)
    assert sorted(told(train) + told(test)) == [("a", "", "c", "1"), ("b", "", "d", "2")]


def test_the_hub_s_copy_is_read_by_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` makes of a file stands for what it would bring."""
    import datasets

    own = datasets.Dataset.from_dict({**DOLLY, "text": ["x"] * 10})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: asked.append((args, options)) or own)
    train, test = load(task_of("dolly"), DataConfig(), seed=0)
    assert asked == [(("databricks/databricks-dolly-15k", None), {"split": "train"})]
    assert (len(train), len(test), train.categories) == (9, 1, ("closed_qa", "open_qa"))


def test_files_of_other_categories_have_one_list_of_them() -> None:
    first = Instructions(["a"], [""], ["b"], np.array([0]), ("y",))
    second = Instructions(["c"], [""], ["d"], np.array([1]), ("x", "y"))
    joined = Instructions.join([first, second])
    assert (joined.categories, joined.labels.tolist()) == (("x", "y"), [1, 1])
    assert not Instructions.join([first, replace(second, labels=np.array([0]), categories=("",))]).has_categories


# --- what is refused

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no responses": (
        {"instruction": ["a"]},
        "no column for the response .*output.*; it has instruction; set",
    ),
    "no instructions": ({"text": ["a"], "output": ["b"]}, "no column for the instruction"),
    "an empty response": (DOLLY | {"response": ["x", " "] * 5}, "column 'response': the response is empty in row 1"),
    "a response that is null": (DOLLY | {"response": ["x", None] * 5}, "the response is empty in row 1 and 4 more"),
    "an empty instruction": (DOLLY | {"instruction": ["x", ""] * 5}, "the instruction is empty in row 1 and 4 more"),
    "a category that is missing": (DOLLY | {"category": ["x", None] * 5}, "the category is empty in row 1"),
    "numbers": (DOLLY | {"response": list(range(10))}, "the values are of type int64, not text"),
    "lists": (DOLLY | {"context": [["a"]] * 10}, "column 'context': the values are of type list"),
    "no rows": ({name: pa.array([], pa.string()) for name in DOLLY}, "no rows"),
    "one row": ({name: values[:1] for name, values in DOLLY.items()}, "one row cannot be shared"),
    "bytes": (DOLLY | {"response": pa.array([b"\xff"] * 10)}, "the values are of type binary"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_columns_are_one_error(name: str, tmp_path: Path) -> None:
    columns, says = BAD[name]
    config = DataConfig(path=str(write(tmp_path / "mine.parquet", columns)))
    with pytest.raises(DataError, match=says) as caught:
        load(task_of("dolly"), config, seed=0)
    assert "\n" not in str(caught.value)


def test_empty_rows_can_be_left_out(tmp_path: Path) -> None:
    """As Alpaca's task does."""
    config = DataConfig(path=str(write(tmp_path / "mine.jsonl", ALPACA | {"output": ["", "x"] * 5})))
    train, test = load(task_of("alpaca"), config, seed=0)
    assert len(train) + len(test) == 5
    config = DataConfig(path=str(write(tmp_path / "mine.jsonl", ALPACA | {"output": [""] * 10})))
    with pytest.raises(DataError, match="every row is empty"):
        load(task_of("alpaca"), config, seed=0)


def test_too_many_categories_are_no_categories(tmp_path: Path) -> None:
    texts = [str(i) for i in range(1001)]
    columns = {"instruction": texts, "response": texts, "category": texts}
    with pytest.raises(DataError, match="1001 different categories, at most 1000"):
        load(task_of("dolly"), DataConfig(path=str(write(tmp_path / "mine.parquet", columns))), seed=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"columns": {"instruction": "x"}}, "no column 'x'; it has .* set data.columns.instruction"),
        ({"columns": {"input": "response"}}, "column 'response' is used for two fields"),
        ({"label_column": "category"}, "data.label_column: has no effect, because task dolly has instructions"),
        ({"eval_split": "test", "test_fraction": 0.2}, "data.test_fraction: has no effect"),
        ({"exercises": {"num_train": 3}}, "data.exercises: has no effect, .* or set task=instructions"),
    ],
)
def test_bad_settings_are_one_error(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    config = DataConfig.model_validate({"path": str(write(tmp_path / "mine.parquet", DOLLY)), **settings})
    with pytest.raises(DataError, match=says):
        load(task_of("dolly"), config, seed=0)


def test_settings_of_other_tasks_have_no_effect() -> None:
    with pytest.raises(DataError, match="data.path: has no effect, because task instructions makes its own rows"):
        load(task_of("instructions"), DataConfig(path="x"), seed=0)
    with pytest.raises(DataError, match="data.columns: has no effect"):
        load(task_of("instructions"), DataConfig(columns=Columns(input="x")), seed=0)
    with pytest.raises(ValueError, match="verbaliser"):
        FromInstructions(name="x", verbaliser=("a",))
    with pytest.raises(ValueError, match="prompt has the placeholders"):
        InstructionFormat(prompt="{question}")


# --- the embedded exercises


def test_exercises_are_right() -> None:
    rows = generate(300, 0, "train", ExerciseSettings())
    for instruction, given, response, name in told(rows):
        words = given.split()
        numbers = [int(word.strip("?.,")) for word in instruction.split() if word.strip("?.,").isdigit()]
        expected = {
            "count": str(len(words)),
            "last": "".join(words[-1:]),
            "larger": str(max(numbers, default=0)),
            "reverse": " ".join(words[::-1]),
            "sort": " ".join(sorted(words)),
            "sum": str(sum(numbers)),
        }[name]
        assert response == expected, (instruction, given)
    assert np.bincount(rows.labels).tolist() == [50] * len(KINDS)
    assert len(set(WORDS)) == len(WORDS)


def test_exercises_are_seeded_and_those_of_the_test_are_others() -> None:
    settings = ExerciseSettings()
    train, test = (generate(240, 1, split, settings) for split in ("train", "test"))
    assert told(train) == told(generate(240, 1, "train", settings)) != told(generate(240, 2, "train", settings))
    asked = {(name, given, response) for _, given, response, name in told(train) if given}
    assert not asked & {(name, given, response) for _, given, response, name in told(test)}
    assert train.true_difficulty is not None and (train.true_difficulty.min(), train.true_difficulty.max()) == (0, 1)


def test_there_are_only_so_many_exercises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercises, "_MAX_REDRAWS", 1)
    with pytest.raises(DataError, match="no more new exercises of the kind '.*' for test rows; lower data.exercises"):
        generate(300, 0, "test", ExerciseSettings())


# --- tokens

TOKENIZER = load_tokenizer(Backbone())
FORM = InstructionFormat(prompt="ask: {instruction} say:", prompt_with_input="ask: {instruction} of: {input} say:")


def rows_of(*rows: tuple[str, str, str]) -> Instructions:
    return Instructions(*(list(part) for part in zip(*rows, strict=True)), np.zeros(len(rows), np.int64), ("",))


def words_of(encoded: Any, row: int) -> tuple[list[str], list[str]]:
    """Of the prompt and of the response."""
    tokens = TOKENIZER.convert_ids_to_tokens(encoded.tokens[encoded.offsets[row] : encoded.offsets[row + 1]].tolist())
    at = int(encoded.answer_at[row]) + 1
    return tokens[:at], tokens[at:]


def test_a_response_follows_its_prompt_and_ends() -> None:
    encoded, cut = encode_instructions(rows_of(("name it", "", "moon"), ("sort", "b a", "a b ")), FORM, TOKENIZER, 32)
    assert words_of(encoded, 0) == (["[CLS]", "ask", ":", "name", "it", "say", ":"], ["moon", "[SEP]"])
    prompt = ["[CLS]", "ask", ":", "sort", "of", ":", "b", "a", "say", ":"]
    assert words_of(encoded, 1) == (prompt, ["a", "b", "[SEP]"])
    assert (cut.prompts, cut.responses) == (0, 0)
    assert end_id(TOKENIZER) == TOKENIZER.sep_token_id


def test_too_long_a_sample_loses_its_input_first_and_never_all_of_its_response() -> None:
    """16 tokens, 7 of them the template's with its [CLS]: 9 for texts and response; texts may keep 4."""
    long = "tree " * 9
    rows = rows_of(("sort", "tree " * 9, "moon"), ("sort", "tree", long), ("sort", long, long))
    encoded, cut = encode_instructions(rows, FORM, TOKENIZER, 16)
    assert np.diff(encoded.offsets).tolist() == [16, 16, 16]
    prompt = ["[CLS]", "ask", ":", "sort", "of", ":", *["tree"] * 6, "say", ":"]
    assert words_of(encoded, 0) == (prompt, ["moon", "[SEP]"])
    assert words_of(encoded, 1) == (["[CLS]", "ask", ":", "sort", "of", ":", "tree", "say", ":"], ["tree"] * 7)
    assert [len(part) for part in words_of(encoded, 2)] == [11, 5]
    assert (cut.prompts, cut.responses) == (2, 2)


def test_a_shorter_shard_keeps_responses_whole() -> None:
    """Whatever a curriculum by length cuts comes from the prompt."""
    encoded, _ = encode_instructions(rows_of(("sort", "tree " * 9, "moon lake")), FORM, TOKENIZER, 64)
    batch = encoded.shard(np.array([0])).shortened(13).batch(torch.arange(1))
    assert batch.inputs["input_ids"].shape == (1, 13)
    behind = batch.inputs["input_ids"][0, int(batch.inputs["answer_at"][0]) + 1 :].tolist()
    assert TOKENIZER.convert_ids_to_tokens(behind) == ["moon", "lake", "[SEP]"]


def test_what_has_no_room_or_no_token_is_refused() -> None:
    with pytest.raises(DataError, match="data.max_length: 9 tokens have no room .* set at least 10"):
        encode_instructions(rows_of(("sort", "tree tree", "moon")), FORM, TOKENIZER, 9)
    with pytest.raises(DataError, match="the response '.*' has no token"):
        encode_instructions(rows_of(("a", "", "b"), ("a", "", "\u200b")), FORM, TOKENIZER, 32)
