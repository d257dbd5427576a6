"""Tasks with responses on an encoder-decoder: encoding, settings that do not fit, curricula, and trained models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import TINY_T5, make_seq2seq, named
from peft import AutoPeftModelForSeq2SeqLM
from safetensors.torch import load_file, save_file

import fibec_ray
from fibec_ray.config.load import check
from fibec_ray.data.encode_instructions import encode_instructions
from fibec_ray.data.examples import Instructions
from fibec_ray.data.instructions import COMMON, Columns, InstructionFormat, chosen_columns
from fibec_ray.data.sets import open_set
from fibec_ray.data.source_target import SourceTargetSet
from fibec_ray.errors import ConfigError, ModelError
from fibec_ray.export.to_lm_eval import export_lm_eval
from fibec_ray.export.write import export_merged
from fibec_ray.models.backbone import load_tokenizer, prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.parts.peft import PEFTS
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.simulation import simulate

FORMAT = InstructionFormat(prompt="{instruction}", prompt_with_input="{instruction} {input}")
TOKENIZER = load_tokenizer(Backbone())
ROWS = Instructions(["count the words.", "sort."], ["a b", ""], ["2", "a b c"], np.zeros(2, np.int64), ("",))


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


def test_the_encoder_gets_the_prompt_with_its_special_tokens_and_the_decoder_the_response(tmp_path: Path) -> None:
    made, cut = encode_instructions(ROWS, FORMAT, TOKENIZER, 20, "seq2seq")
    start, end = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id
    prompts = [[start, *ids("count the words. a b"), end], [start, *ids("sort."), end]]
    made.save(tmp_path / "set")
    again: Any = open_set(tmp_path / "set")
    assert isinstance(again, SourceTargetSet) and again.prompts() == prompts
    assert (cut.prompts, cut.responses) == (0, 0) and again.answer_lengths.tolist() == [2, 4]
    inputs = again.shard(np.array([1, 0])).batch(torch.tensor([1])).inputs
    assert inputs["input_ids"].tolist() == [prompts[0]] and inputs["target_ids"].tolist() == [[*ids("2"), end]]


def test_sources_lose_the_ends_of_their_texts_first() -> None:
    made, cut = encode_instructions(ROWS, FORMAT, TOKENIZER, 8, "seq2seq")
    assert (cut.prompts, cut.responses) == (1, 0) and made.lengths.max() == 8
    shorter = made.shard(np.arange(2)).shortened(6).batch(torch.arange(2)).inputs
    assert (shorter["attention_mask"].sum(1) + shorter["target_mask"].sum(1)).max() <= 7
    assert shorter["target_ids"][0, :2].tolist() == [*ids("2"), TOKENIZER.sep_token_id]
    assert [row[int(n) - 1] for row, n in zip(shorter["input_ids"], shorter["attention_mask"].sum(1), strict=True)] == [
        TOKENIZER.sep_token_id
    ] * 2


def test_source_and_target_are_column_names() -> None:
    assert chosen_columns(Columns(), ["source", "target"], "here") == {"instruction": "source", "response": "target"}
    assert COMMON["instruction"][0] == "instruction"


@pytest.mark.parametrize("kind", [kind for kind, cls in PEFTS.items() if "one_stack" in cls().needs])
def test_kinds_with_virtual_tokens_say_why_they_do_not_apply(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"method.peft: {kind} adds virtual tokens to one sequence, but an encoder-"):
        check(make_seq2seq({"name": "test", "peft": kind}), "test")


def test_tasks_without_responses_say_what_to_choose() -> None:
    with pytest.raises(ConfigError, match="task synthetic needs scores of another kind: backbone.head seq2seq writes"):
        check(make_seq2seq() | {"task": named("tasks", "synthetic"), "data": {}}, "test")


@pytest.mark.parametrize("method", ["slw", "fedpeptao", "moon"])
def test_parts_that_look_at_lengths_and_states_run(method: str, tmp_path: Path) -> None:
    settings = make_seq2seq(method, rounds=2)
    settings["method"]["peft"] = {"kind": "lora"}
    run = simulate(check(settings, "test"), tmp_path / "run")
    assert np.isfinite([row["train_loss"] for row in read_rounds(run.folder).to_pylist()[1:]]).all()


def test_a_trained_model_answers_as_transformers_generate_does(tmp_path: Path) -> None:
    """In memory, and merged into a plain model."""
    settings = make_seq2seq(local={"learning_rate": 0.05})
    settings["method"]["peft"] = {"kind": "lora", "target_modules": "attention"}
    run = simulate(check(settings, "test"), tmp_path / "run")
    model = fibec_ray.load(run.folder)
    asked = [("count the words.", "apple bird"), ("which word comes last?", "boat book cake")]
    answers = [each.text for each in model.predict(asked, max_new_tokens=5)]
    export_merged(run.folder, tmp_path / "plain")
    plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "plain").eval()
    prompts = [f"Instruction: {words} Input: {about} Response:" for words, about in asked]
    for prompt, answer in zip(prompts, answers, strict=True):
        found = plain.generate(**TOKENIZER(prompt, return_tensors="pt", return_token_type_ids=False), max_new_tokens=5,
                               do_sample=False, eos_token_id=TOKENIZER.sep_token_id)  # fmt: skip
        assert TOKENIZER.decode(found[0], skip_special_tokens=True).strip() == answer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like one from the hub."""
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(transformers.AutoConfig.for_model(**TINY_T5)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_adapted_and_peft_loads_the_adapter(dtype: str, checkpoint: Path, tmp_path: Path) -> None:
    backbone = {"init": "pretrained", "config": None, "tokenizer": None, "name": str(checkpoint), "head": "seq2seq"}
    settings = make_seq2seq(rounds=1, local={"learning_rate": 0.05})
    settings["backbone"] = {**backbone, "dtype": dtype}
    run = simulate(check(settings, "test"), tmp_path / "run")
    theirs = AutoPeftModelForSeq2SeqLM.from_pretrained(run.folder / "adapter").eval()
    model: Any = fibec_ray.load(run.folder).engine
    prompts, written = torch.tensor([[101, 2000, 3000, 102]]), torch.tensor([[2001]])
    with torch.no_grad():
        logits = theirs(input_ids=prompts, decoder_input_ids=torch.tensor([[0, 2001]])).logits[:, -1].float()
    slack = 1e-5 if dtype == "float32" else 0.1
    torch.testing.assert_close(model.next_scores(prompts, written), logits, atol=slack, rtol=slack)


def test_a_checkpoint_without_some_weights_is_rejected(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "t5")
    weights = load_file(tmp_path / "t5" / "model.safetensors")
    del weights["decoder.block.1.layer.1.EncDecAttention.k.weight"]
    save_file(weights, tmp_path / "t5" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="lacks weights for its config .decoder.block.1.layer.1.EncDecAttention.k"):
        prepare(Backbone(name=str(tmp_path / "t5"), head="seq2seq"), 0, 0, tmp_path / "cache")


def test_lm_eval_is_for_decoders(tmp_path: Path) -> None:
    run = simulate(check(make_seq2seq(rounds=1), "test"), tmp_path / "run")
    with pytest.raises(ModelError, match="lm_eval runs decoders"):
        export_lm_eval(run.folder, tmp_path / "out")
