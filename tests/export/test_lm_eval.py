"""`fibec-ray export RUN --to lm-eval`: files that lm_eval takes, and test rows with the tokens of the run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml
from conftest import TINY_LLAMA, make_digits, make_instructions, make_tiny

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.errors import DataError, ModelError, RunDirError
from fibec_ray.export.lm_eval_prompts import answer_tokens
from fibec_ray.export.load import load
from fibec_ray.export.to_lm_eval import export_lm_eval
from fibec_ray.export.write import export_adapter
from fibec_ray.learning.federation import Federation
from fibec_ray.runs.simulation import Finished, simulate

# Keys of lm_eval 0.4.13. The slow tests below run the tool itself.
RUN_KEYS = {  # fields of lm_eval.config.evaluate_config.EvaluatorConfig
    "model", "model_args", "tasks", "num_fewshot", "batch_size", "max_batch_size", "device", "limit", "samples",
    "use_cache", "cache_requests", "check_integrity", "write_out", "log_samples", "output_path", "predict_only",
    "system_instruction", "apply_chat_template", "fewshot_as_multiturn", "show_config", "include_path", "gen_kwargs",
    "verbosity", "wandb_args", "wandb_config_args", "hf_hub_log_args", "trackio_args", "seed", "trust_remote_code",
    "confirm_run_unsafe_code", "metadata",
}  # fmt: skip
MODEL_KEYS = {  # named arguments of lm_eval.models.huggingface.HFLM
    "pretrained", "backend", "revision", "subfolder", "tokenizer", "truncation", "logits_cache", "max_length", "device",
    "dtype", "softmax_dtype", "mixed_precision_dtype", "batch_size", "max_batch_size", "trust_remote_code",
    "use_fast_tokenizer", "add_bos_token", "prefix_token_id", "parallelize", "max_memory_per_gpu", "max_cpu_memory",
    "offload_folder", "tp_plan", "peft", "delta", "autogptq", "gptqmodel", "gguf_file", "think_end_token",
    "enable_thinking", "chat_template_args",
}  # fmt: skip
TASK_KEYS = {  # fields of lm_eval.config.task.TaskConfig
    "task", "task_alias", "tag", "custom_dataset", "dataset_path", "dataset_name", "dataset_kwargs", "training_split",
    "validation_split", "test_split", "fewshot_split", "process_docs", "doc_to_text", "doc_to_target", "doc_to_image",
    "doc_to_audio", "unsafe_code", "doc_to_choice", "process_results", "use_prompt", "description", "target_delimiter",
    "fewshot_delimiter", "fewshot_config", "num_fewshot", "metric_list", "output_type", "generation_kwargs", "repeats",
    "filter_list", "should_decontaminate", "doc_to_decontamination_query", "gen_prefix", "metadata",
}  # fmt: skip
METRICS = {  # lm_eval.api.metrics: (metric, output type) -> its aggregation
    ("exact_match", "generate_until"): "mean",
    ("acc", "multiple_choice"): "mean",
    ("mcc", "multiple_choice"): "matthews_corrcoef",
    ("f1", "multiple_choice"): "f1",
}
LM_EVAL = shutil.which("lm_eval")
"""PATH=OTHER_ENVIRONMENT/bin:$PATH finds one that is installed apart from this package."""

BRIEF = {"rounds": 1, "num_devices": 2, "cohort_size": 2}
DECODER = {"head": "causal_lm", "config": TINY_LLAMA}
PROMPTS = {"name": "m", "peft": {"kind": "prompt", "num_tokens": 2}}


def texts(**changes: Any) -> dict[str, Any]:
    return make_instructions(**{**BRIEF, **changes})


def classes(**changes: Any) -> dict[str, Any]:
    return make_tiny(**{**BRIEF, "backbone": DECODER, "data": {"max_length": 24}, **changes})


def run_of(raw: dict[str, Any], folder: Path) -> Finished:
    return simulate(check(raw, "test"), folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    folder = tmp_path_factory.mktemp("runs")
    return {"texts": run_of(texts(), folder / "texts"), "classes": run_of(classes(), folder / "classes")}


def run_file(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "lm_eval.yaml").read_text())
    return found


def task_of(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The task's settings and rows, found as lm_eval finds them: by its name, and from the folder."""
    (name,) = run_file(folder)["tasks"]
    task = yaml.safe_load((folder / run_file(folder)["include_path"] / f"{name}.yaml").read_text())
    assert task["task"] == name and task["dataset_path"] == "parquet"
    return task, pq.read_table(folder / task["dataset_kwargs"]["data_files"][task["test_split"]]).to_pylist()


def tokens(folder: Path, texts: list[str]) -> list[list[int]]:
    """As lm_eval tokenizes: with the tokenizer that the run file names."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / run_file(folder)["model_args"]["tokenizer"])
    found: list[list[int]] = tokenizer(texts)["input_ids"]
    return found


@pytest.mark.parametrize("kind", ["texts", "classes"])
def test_files_have_keys_of_lm_eval(kind: str, runs: dict[str, Finished], tmp_path: Path) -> None:
    written = export_lm_eval(runs[kind], tmp_path / "out")
    settings, (task, rows) = run_file(written.folder), task_of(written.folder)
    assert settings.keys() <= RUN_KEYS and settings["model_args"].keys() <= MODEL_KEYS and task.keys() <= TASK_KEYS
    assert settings["model"] == "hf" and len(rows) == written.task.num_rows  # type: ignore[union-attr]
    for metric in task["metric_list"]:
        assert METRICS[metric["metric"], task["output_type"]] == metric["aggregation"]
    assert {task["doc_to_text"], task["doc_to_target"]} == rows[0].keys(), "a column's name is not taken for a template"


@pytest.mark.parametrize("max_length", [20, 64])
def test_prompts_and_responses_have_the_tokens_of_the_run(max_length: int, tmp_path: Path) -> None:
    """Also where the run cut the prompts. Generation goes on after the prompt and stops at the end token."""
    run = run_of({**texts(), "data": {**texts()["data"], "max_length": max_length}}, tmp_path / "run")
    written = export_lm_eval(run)
    assert written.folder == run.folder / "lm-eval" and written.task is not None
    test, (task, rows) = Federation.load(run.folder / "data").test, task_of(written.folder)
    assert tokens(written.folder, [row["prompt"] for row in rows]) == test.prompts()  # type: ignore[attr-defined]
    tokenizer, end = load(run).tokenizer, run_file(written.folder)["gen_kwargs"]["eos_token_id"]
    answers = answer_tokens(test)  # type: ignore[arg-type]
    assert {ids[-1] for ids in answers} == {end} == {tokenizer.sep_token_id}
    assert [row["response"] for row in rows] == [tokenizer.decode(ids[:-1]) for ids in answers]
    assert task["generation_kwargs"]["max_gen_toks"] == max(map(len, answers))
    assert written.task.num_differing == 0 and written.task.logged == run.rows[-1]["global_accuracy"]


@pytest.mark.parametrize("max_length", [24, 64])
def test_a_word_after_the_prompt_is_the_token_that_the_run_scores(max_length: int, tmp_path: Path) -> None:
    run = run_of(classes(data={"max_length": max_length}), tmp_path / "run")
    written = export_lm_eval(run)
    test, (task, rows) = Federation.load(run.folder / "data").test, task_of(written.folder)
    assert run.prepared.label_words is not None and written.task is not None and written.task.num_differing == 0
    for word, token in zip(task["doc_to_choice"], run.prepared.label_words, strict=True):
        asked = [f"{row['prompt']}{task['target_delimiter']}{word}" for row in rows]
        assert tokens(written.folder, asked) == [[*ids, token] for ids in test.prompts()]  # type: ignore[attr-defined]
    assert [row["label"] for row in rows] == test.labels.tolist()


def test_responses_that_the_run_cut_are_counted(tmp_path: Path) -> None:
    run = run_of({**texts(), "data": {**texts()["data"], "max_length": 12}}, tmp_path / "run")
    written = export_lm_eval(run)
    ends = [ids[-1] for ids in answer_tokens(Federation.load(run.folder / "data").test)]  # type: ignore[arg-type]
    num_cut = sum(end != run_file(written.folder)["gen_kwargs"]["eos_token_id"] for end in ends)
    assert 0 < num_cut == written.task.num_differing  # type: ignore[union-attr]
    note = f"# In {num_cut} of 12 rows lm_eval sees other tokens than the run did (data.max_length=12)"
    assert note in (written.folder / "lm_eval.yaml").read_text()


def test_a_random_base_is_written_and_the_folder_can_move(runs: dict[str, Finished], tmp_path: Path) -> None:
    written = export_lm_eval(runs["texts"], tmp_path / "out")
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(written.folder, moved)
    arguments = run_file(moved)["model_args"]
    assert (arguments["pretrained"], arguments["peft"], arguments["dtype"]) == ("base", "adapter", "float32")
    from peft import PeftModel

    base = transformers.AutoModelForCausalLM.from_pretrained(moved / "base")
    model = PeftModel.from_pretrained(base, moved / "adapter").eval()
    ids, trained = torch.tensor([[101, 2054, 2003]]), load(runs["texts"])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits[:, -1], trained.engine.next_scores(ids, ids[:, :0]))  # type: ignore[attr-defined]


def test_a_local_base_is_named_by_its_path(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(**TINY_LLAMA)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    backbone = {"init": "pretrained", "config": None, "name": str(tmp_path / "base")}
    run = run_of(texts(backbone={**DECODER, **backbone}), tmp_path / "run")
    folder = export_lm_eval(run).folder
    assert run_file(folder)["model_args"]["pretrained"] == str(tmp_path / "base") and not (folder / "base").exists()
    assert "# The base model is outside this folder" in (folder / "lm_eval.yaml").read_text()
    (tmp_path / "base").rename(tmp_path / "other")
    given = export_lm_eval(run, tmp_path / "again", base=str(tmp_path / "other")).folder
    assert run_file(given)["model_args"]["pretrained"] == str(tmp_path / "other")


def test_a_model_trained_whole_needs_no_adapter(tmp_path: Path) -> None:
    run = run_of(texts(method={"name": "m", "peft": {"kind": "full"}}), tmp_path / "run")
    folder = export_lm_eval(run).folder
    assert run_file(folder)["model_args"]["pretrained"] == "model" and "peft" not in run_file(folder)["model_args"]
    transformers.AutoModelForCausalLM.from_pretrained(folder / "model")


def test_virtual_tokens_take_one_prompt_at_a_time(tmp_path: Path) -> None:
    """The peft library ignores position ids beside them, so padding would move the tokens of shorter prompts."""
    run = run_of(classes(method=PROMPTS), tmp_path / "run")
    assert run_file(export_lm_eval(run).folder)["batch_size"] == 1


def test_an_exported_adapter_has_no_task_of_its_own(runs: dict[str, Finished], tmp_path: Path) -> None:
    export_adapter(runs["classes"], tmp_path / "adapter")
    written = export_lm_eval(tmp_path / "adapter", tmp_path / "out")
    assert written.task is None and "tasks" not in run_file(written.folder)
    assert written.command == "lm_eval run --config lm_eval.yaml --tasks hellaswag"


def test_the_command_says_what_to_run_and_to_expect(runs: dict[str, Finished], tmp_path: Path, capsys: Any) -> None:
    """DIR may come after the option."""
    run, out = runs["classes"], tmp_path / "out"
    assert main(["export", str(run.folder), "--to", "lm-eval", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"cd {out} && lm_eval run --config lm_eval.yaml" in shown
    assert f"fibec_synthetic, 24 test rows: expect acc {run.rows[-1]['global_accuracy']:.4f}" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--merged", "b"), "--merged: has no effect with --to lm-eval; give the folder as DIR"),
        (("--dest", "b"), "--dest: has no effect with --to lm-eval; give the folder as DIR"),
        (("--device", "1"), "--device: has no effect with --to lm-eval, which takes the global model"),
        (("a", "b"), "export: unrecognized arguments: b"),
    ],
)
def test_options_of_other_exports_are_errors(words: tuple[str, ...], says: str, capsys: Any) -> None:
    assert main(["export", "run", "--to", "lm-eval", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (make_digits(**BRIEF), "has backbone cnn, and lm_eval runs language models; score it in Python"),
        (make_tiny(**BRIEF), "decoders with their language-model head, and .* has backbone.head mean_pool"),
        (
            classes(method={**PROMPTS, "sharing": {"kind": "none"}}),
            "method m has no global model.* `fibec-ray export RUN DIR --device N`",
        ),
        (classes(method="lpt"), "the peft library lacks lpt, and it cannot be merged into the base"),
    ],
)
def test_models_that_lm_eval_cannot_run_are_errors(raw: dict[str, Any], says: str, tmp_path: Path) -> None:
    run = run_of(raw, tmp_path / "run")
    with pytest.raises(ModelError, match=f"--to lm-eval: .*{says}"):
        export_lm_eval(run)
    assert not (run.folder / "lm-eval").exists() and not list(run.folder.glob(".lm-eval*"))


def test_a_full_folder_and_changed_test_rows_are_errors(tmp_path: Path) -> None:
    rows = [{"instruction": f"say {word}", "response": word} for word in ("a", "b", "c", "d") * 5]
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"name": "mine", "kind": "instructions", "eval_split": "test"}
    raw = {**texts(), "task": task, "data": {"path": str(tmp_path / "data"), "max_length": 64}}
    run = run_of({**raw, "partition": {"kind": "iid"}}, tmp_path / "run")
    (run.folder / "lm-eval").mkdir()
    (run.folder / "lm-eval" / "mine").touch()
    with pytest.raises(RunDirError, match="lm-eval: is not empty; choose another folder"):
        export_lm_eval(run)
    assert task_of(export_lm_eval(run, tmp_path / "out").folder)[1][0]["response"] == "a"
    file = tmp_path / "data" / "test.jsonl"
    file.write_text(file.read_text().replace('"d"', '"e"'))
    with pytest.raises(DataError, match="test rows have changed .*; or give .*adapter instead of the run"):
        export_lm_eval(run, tmp_path / "changed")
    file.unlink()
    with pytest.raises(DataError, match="--to lm-eval: .*; or give .*adapter instead of the run"):
        export_lm_eval(run, tmp_path / "missing")
    export_lm_eval(run.folder / "adapter", tmp_path / "without")


LEARNS = {"rounds": 1, "local": {"learning_rate": 0.01, "batch_size": 8, "epochs": 4}}
ROWS = {"max_length": 48, "exercises": {"num_train": 240, "num_test": 40, "most_items": 3}}
CASES = {
    "text answers, trained whole": {**texts(**LEARNS, method={"name": "m", "peft": {"kind": "full"}}), "data": ROWS},
    "classes": classes(rounds=4),
    "prompt tuning": classes(method=PROMPTS),
}


@pytest.mark.slow
@pytest.mark.skipif(LM_EVAL is None, reason="lm_eval is not installed: pip install 'lm_eval[hf]', here or apart")
@pytest.mark.parametrize("case", CASES)
def test_lm_eval_finds_the_accuracy_that_the_run_logged(case: str, tmp_path: Path) -> None:
    run = run_of(CASES[case], tmp_path / "run")
    written = export_lm_eval(run, tmp_path / "out")
    assert LM_EVAL is not None and written.task is not None
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        written.command.replace("lm_eval", LM_EVAL, 1).split(),
        cwd=written.folder,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (results,) = (written.folder / "results").rglob("results_*.json")
    found = json.loads(results.read_text())["results"][written.task.name][f"{written.task.metric},none"]
    assert found == pytest.approx(run.rows[-1]["global_accuracy"]) and found > 0
