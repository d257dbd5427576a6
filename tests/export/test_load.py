"""A run's model predicts as the run's evaluation did, wherever it is loaded from."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from conftest import TINY_LLAMA, make_digits, make_instructions, make_regression, make_tiny
from pydantic import RootModel

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError, DataError, ModelError, RunDirError
from fibec_ray.export.load import load
from fibec_ray.files.sealed import write_sealed
from fibec_ray.learning.federation import Federation
from fibec_ray.runs.save import complete
from fibec_ray.runs.saved_model import read_saved_model
from fibec_ray.runs.simulation import Finished, simulate
from fibec_ray.tasks import load as load_rows

HEADS: dict[str, dict[str, Any]] = {
    "mean_pool": {},
    "model": {"head": "model"},
    "masked_lm": {"head": "masked_lm"},
    "causal_lm": {"head": "causal_lm", "config": TINY_LLAMA},
    "decoder with its own head": {"head": "model", "config": TINY_LLAMA},
    "bfloat16": {"dtype": "bfloat16"},
}
SETTINGS = {"rounds": 1, "num_devices": 4, "cohort_size": 4, "evaluation": {"every": 1, "batch_size": 7}}


def settings(method: str | dict[str, Any] = "fedavg", **changes: Any) -> dict[str, Any]:
    return make_tiny(method, **{**SETTINGS, "data": {"max_length": 24}, **changes})


def run_of(raw: dict[str, Any], folder: Path) -> Finished:
    return simulate(check(raw, "test"), folder / "run")


def test_rows(raw: dict[str, Any]) -> tuple[list[Any], np.ndarray]:
    experiment = check(raw, "test")
    _, test = load_rows(experiment.task, experiment.data, experiment.seed)
    texts = test.texts_a if test.texts_b is None else list(zip(test.texts_a, test.texts_b, strict=True))
    return list(texts), test.labels


test_rows.__test__ = False  # type: ignore[attr-defined]


def agrees(run: Finished, raw: dict[str, Any], **options: Any) -> None:
    """Accuracy and loss over the test set are those of the round log."""
    model, (texts, labels) = load(run.folder, **options), test_rows(raw)
    scores = model.scores(texts)
    losses = torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels), reduction="none")
    logged = run.rows[-1]
    assert float((scores.argmax(1).numpy() == labels).mean()) == logged["global_accuracy"]
    if "_lm" not in check(raw, "test").backbone.head:  # type: ignore[union-attr]
        assert float(losses.double().mean()) == logged["global_loss"]


SLOW = ("bfloat16", "decoder with its own head")


@pytest.mark.parametrize("head", [pytest.param(head, marks=[pytest.mark.slow] * (head in SLOW)) for head in HEADS])
def test_predictions_are_those_of_the_evaluation(head: str, tmp_path: Path) -> None:
    raw = settings(backbone=HEADS[head])
    run = run_of(raw, tmp_path)
    agrees(run, raw)
    model = load(run.folder)
    texts, _ = test_rows(raw)
    found = model.predict(texts[:3])
    assert [one.label for one in found] == [model.label_names[i] for i in model.scores(texts[:3]).argmax(1).tolist()]
    assert found[0].score == max(found[0].scores.values()) and sum(found[0].scores.values()) == pytest.approx(1)
    assert model.label_names == tuple(raw["task"]["label_names"])
    assert model.predict([]) == []


def test_a_model_that_an_earlier_version_saved(tmp_path: Path) -> None:
    """It says num_classes and label_words where models now have `answers`."""
    run = run_of(settings(backbone=HEADS["causal_lm"]), tmp_path)
    before, path = load(run.folder).about, run.folder / "adapter" / "fibec_ray.json"
    content = json.loads(path.read_text())
    answers = content.pop("answers")
    del content["digest"]
    content |= {"num_classes": answers["num_scores"], "label_words": answers["label_words"]}
    write_sealed(path, RootModel[dict[str, Any]](content))
    assert load(run.folder).about == before


def test_a_folder_that_moved_and_a_url_give_the_same_model(tmp_path: Path) -> None:
    """The adapter folder is complete by itself; a URL brings the saved model alone."""
    raw = settings()
    run = run_of(raw, tmp_path)
    texts, _ = test_rows(raw)
    before = load(run.folder).scores(texts)
    names = {path.name for path in (run.folder / "adapter").iterdir()}
    assert {"README.md", "fibec_ray.json", "tokenizer.json", "labels.json", "adapter_config.json"} <= names
    assert torch.equal(load(f"file://{run.folder}").scores(texts), before)
    fsspec.filesystem("memory").put(str(run.folder), "/bucket/run", recursive=True)
    assert torch.equal(load("memory://bucket/run").scores(texts), before)
    assert torch.equal(load("memory://bucket/run/adapter").scores(texts), before)
    with pytest.raises(RunDirError, match="memory://bucket/none: no saved model here"):
        load("memory://bucket/none")
    shutil.move(run.folder / "adapter", tmp_path / "elsewhere")
    assert torch.equal(load(tmp_path / "elsewhere").scores(texts), before)
    assert torch.equal(load(str(tmp_path / "elsewhere")).scores(texts), before)


def test_loading_leaves_the_filters_of_warnings_alone(tmp_path: Path) -> None:
    """A script that loads a model still sees its own FutureWarnings."""
    run = run_of(settings(), tmp_path)
    with warnings.catch_warnings():
        warnings.resetwarnings()  # pytest's own settings ignore FutureWarnings
        load(run.folder)
        assert not list(warnings.filters)


def test_a_tokenizer_that_cannot_be_saved_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = settings(backbone={"tokenizer": str(tmp_path / "none")})
    run = run_of(settings(), tmp_path)
    about = read_saved_model(run.folder / "adapter")
    (tmp_path / "draft").mkdir()
    complete(about.model_copy(update={"backbone": check(raw, "test").backbone}), tmp_path / "draft", tmp_path / "draft")
    assert "the model is saved without its tokenizer" in caplog.text and "none" in caplog.text
    assert (tmp_path / "draft" / "fibec_ray.json").is_file()


def test_the_model_card_has_the_table_of_the_run(tmp_path: Path) -> None:
    raw = settings(partition={"kind": "dirichlet_label", "alpha": 0.5})
    run = run_of(raw, tmp_path)
    card = (run.folder / "adapter" / "README.md").read_text()
    accuracy = run.rows[-1]["global_accuracy"]
    for said in (
        "library_name: peft",
        "pipeline_tag: text-classification",
        "| backbone | random weights, seed 3, head mean_pool",
        "| method | fedavg, lora (r 8, alpha 16.0) |", "| rounds | 1 of 4 devices each |", f"accuracy {accuracy:.4f}",
        "partition dirichlet_label (", "alpha 0.5", "fibec_ray.load(",
    ):  # fmt: skip
        assert said in card, said


PERSONAL = ("fibecfed", "fedper", "ditto", "pfedme")


@pytest.mark.parametrize("method", [PERSONAL[1], *(pytest.param(name, marks=pytest.mark.slow) for name in PERSONAL)])
def test_a_devices_own_model_predicts_as_it_was_evaluated(method: str, tmp_path: Path) -> None:
    raw = settings(method)
    run = run_of(raw, tmp_path)
    evaluations = {row["device"]: row for row in _evaluations(run.folder)}
    federation, (texts, labels) = Federation.load(run.folder / "data"), test_rows(raw)
    for device in (0, 3):
        rows = federation.test_rows[device]
        if not len(rows):
            continue
        model = load(run.folder, device=device)
        scores = model.scores([texts[row] for row in rows])
        right = scores.argmax(1).numpy() == labels[rows]
        assert float(right.mean()) == evaluations[device]["accuracy"]
    assert model.about.device == 3 or len(federation.test_rows[3]) == 0
    if method == "fedper":
        with pytest.raises(ModelError, match="fedper has no global model: .* --device N"):
            load(run.folder)
    with pytest.raises(ConfigError, match="device 4: the run has devices 0 to 3"):
        load(run.folder, device=4)
    assert torch.equal(load(f"file://{run.folder}", device=3).scores(texts[:2]), load(run.folder, 3).scores(texts[:2]))


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    from fibec_ray.roundlog.reader import read_table

    found: list[dict[str, Any]] = read_table(folder, "evaluations").to_pylist()
    return [row for row in found if row["round"] == 0]


def test_pairs_of_texts(tmp_path: Path) -> None:
    task = {
        "name": "pairs", "text_columns": ["a", "b"], "label_names": ["no", "yes"], "verbaliser": ["no", "yes"],
        "template": "{a} <mask> {b}", "causal_template": "{a} {b} Answer:",
    }  # fmt: skip
    lines = "\n".join(
        json.dumps({"a": f"a word {i}", "b": "good" if i % 2 else "bad", "label": i % 2}) for i in range(20)
    )
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(lines)
    raw = settings(backbone={"head": "model"})
    raw |= {"task": task, "data": {"path": str(tmp_path), "max_length": 16}}
    run = run_of(raw, tmp_path)
    agrees(run, raw)
    model = load(run.folder)
    assert model.predict([("a word", "good"), ["a word", "bad"]])[1].label in ("no", "yes")
    with pytest.raises(DataError, match="input 1: task pairs takes a pair of texts, .* and this is a text"):
        model.predict([("a", "b"), "c"])


def test_instructions_are_answered_in_text(tmp_path: Path) -> None:
    """Greedy decoding: an answer is exact if and only if evaluation counted it as such."""
    raw = make_instructions(num_devices=4, cohort_size=4, rounds=1, evaluation={"every": 1, "batch_size": 7})
    run = run_of(raw, tmp_path)
    model = load(run.folder)
    first, second = model.predict([("repeat the words", "apple bird"), "say hello"], max_new_tokens=5)
    assert isinstance(first.text, str) and isinstance(second.text, str) and first.label is None
    alone = model.predict(["say hello"], max_new_tokens=5)[0]
    assert alone == second
    with pytest.raises(ModelError, match="answers in text and has no class scores"):
        model.scores(["say hello"])


def test_networks_from_scratch_predict_from_numbers(tmp_path: Path) -> None:
    for name, raw in (("digits", make_digits(rounds=1)), ("regression", make_regression(rounds=1))):
        run = run_of(raw, tmp_path / name)
        test = Federation.load(run.folder / "data").test
        model, features = load(run.folder), np.asarray(test.features)  # type: ignore[union-attr]
        found = model.predict(features)
        if name == "digits":
            right = [one.label == str(label) for one, label in zip(found, test.labels, strict=True)]
            assert sum(right) / len(right) == pytest.approx(run.rows[-1]["global_accuracy"])
        else:
            errors = [0.5 * (one.value - value) ** 2 for one, value in zip(found, test.labels, strict=True)]  # type: ignore[operator]
            assert sum(errors) / len(errors) == pytest.approx(run.rows[-1]["global_loss"], rel=1e-5)
        with pytest.raises(DataError, match="predicts from numbers of shape"):
            model.predict(["a text"])


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="nothing: no such folder; give a run directory"):
        load(tmp_path / "nothing")
    with pytest.raises(RunDirError, match="not a run directory"):
        load(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(RunDirError, match="this run has not finished, so it has no model yet; finish it with"):
        load(tmp_path)


def test_a_base_that_moved_is_found_beside_the_run_or_asked_for(tmp_path: Path, monkeypatch: Any) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(**make_tiny()["backbone"]["config"])
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    raw = settings(backbone={"init": "pretrained", "config": None, "name": "base"})
    run = run_of(raw, tmp_path / "here")
    texts, _ = test_rows(raw)
    before = load(run.folder).scores(texts)
    told = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load(run.folder).scores(texts), before)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / "run"
    assert torch.equal(load(moved).scores(texts), before)
    (tmp_path / "there" / "base").rename(tmp_path / "base of another name")
    with pytest.raises(ModelError, match=r"its base model is not here .* give the folder of the base with --base DIR"):
        load(moved)
    assert torch.equal(load(moved, base=str(tmp_path / "base of another name")).scores(texts), before)
    torch.manual_seed(1)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="the base model here is not the one that the run used"):
        load(moved, base=str(tmp_path / "other"))


def test_a_users_own_adapter_loads_from_its_run_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from fibec_ray.parts.peft.lora import Lora\n\n\nclass Mine(Lora): ...\n")
    raw = settings({"name": "m", "peft": {"kind": f"{tmp_path / 'mine.py'}:Mine", "r": 2}})
    run = run_of(raw, tmp_path)
    agrees(run, raw)
    kept = run.folder / "parts" / "mine.py"
    kept.write_text(kept.read_text() + "\n# changed\n")
    with pytest.raises(RunDirError, match="mine.py is not what this run began with"):
        load(run.folder)
