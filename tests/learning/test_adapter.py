"""RUN/adapter is a PEFT adapter: with nothing but transformers and peft it gives the run's global model.

Other kinds than LoRA: tests/models/test_every_peft.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from batches import tokens
from safetensors.torch import load_file

from fibec_ray.config.load import check
from fibec_ray.learning.federation import Federation
from fibec_ray.model_types import Batch
from fibec_ray.models.backbone import prepare
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.runs.simulation import cache_dir, simulate
from fibec_ray.tensors import digest

CAUSAL = {"head": "causal_lm", "config": {"model_type": "llama", "num_key_value_heads": 2}}
HEADS: dict[str, dict[str, Any]] = {
    "mean_pool": {},
    "model": {"head": "model"},
    "masked_lm": {"head": "masked_lm"},
    "causal_lm": CAUSAL,
}
AUTO = {
    "mean_pool": "AutoModel",
    "model": "AutoModelForSequenceClassification",
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
}


@pytest.fixture(params=list(HEADS))
def finished(request: pytest.FixtureRequest, tiny_settings: Any, tmp_path: Path) -> tuple[Any, Any]:
    """The experiment and its run, short, with personal and shared layers."""
    backbone = {**tiny_settings()["backbone"], **HEADS[request.param]}
    backbone["config"] = {**tiny_settings()["backbone"]["config"], **HEADS[request.param].get("config", {})}
    settings = tiny_settings("fibecfed", rounds=2, num_devices=4, backbone=backbone, data={"max_length": 40})
    experiment = check(settings, "test")
    return experiment, simulate(experiment, tmp_path / "run")


def base_of(experiment: Any, num_classes: int) -> Any:
    folder = prepare(experiment.backbone, experiment.seed, num_classes, cache_dir())
    return getattr(transformers, AUTO[experiment.backbone.head]).from_pretrained(folder)


def samples(run: Any) -> Batch:
    return Federation.load(run.folder / "data").test_set().batch(torch.arange(8))


@pytest.mark.filterwarnings("ignore:The PEFT config's")
@torch.no_grad()
def test_peft_loads_the_global_model(finished: tuple[Any, Any]) -> None:
    """PeftModel.from_pretrained on the prepared base gives the class scores of the run's own model and values."""
    experiment, run = finished
    folder, batch, head = run.folder / "adapter", samples(run), experiment.backbone.head
    whole = peft.PeftModel.from_pretrained(base_of(experiment, run.prepared.num_classes), folder).eval()
    out = whole(**tokens(batch))
    if head == "mean_pool":
        own = load_file(folder / "head.safetensors")
        real = batch.inputs["attention_mask"].unsqueeze(2)
        scores = (out.last_hidden_state * real).sum(1) / real.sum(1) @ own["weight"].T + own["bias"]
    elif head == "model":
        scores = out.logits
    else:
        scores = out.logits[torch.arange(8), batch.inputs["answer_at"]][:, list(run.prepared.label_words)]
    torch.testing.assert_close(scores, scores_of(experiment, run, batch))
    assert not torch.allclose(scores, scores_of(experiment, run, batch, trained=False))


def scores_of(experiment: Any, run: Any, batch: Batch, trained: bool = True) -> torch.Tensor:
    """From our own model, with the values that the run left or with those that it started from."""
    prepared = run.prepared
    base = prepare(experiment.backbone, experiment.seed, prepared.num_classes, cache_dir())
    model = TorchModel(
        ModelSpec(experiment.backbone, experiment.method.peft, prepared.answers(experiment.task), experiment.seed),
        base,
    )
    if trained:
        model.load(saved_values(run.folder))
        assert digest(model.read()) == run.adapter_digest
    model.train(False)
    return model.forward(batch).scores


def saved_values(folder: Path) -> dict[str, torch.Tensor]:
    values = load_file(folder / "adapter" / "adapter_model.safetensors")
    head = folder / "adapter" / "head.safetensors"
    return values | ({f"head.{name}": value for name, value in load_file(head).items()} if head.exists() else {})


def test_what_is_trained_whole_says_its_class_names(tiny_settings: Any, tmp_path: Path) -> None:
    backbone = {**tiny_settings()["backbone"], "head": "model"}
    settings = tiny_settings(
        {"name": "full", "peft": "full"}, rounds=1, num_devices=2, cohort_size=2, backbone=backbone
    )
    run = simulate(check(settings, "test"), tmp_path / "run")
    config = transformers.AutoModelForSequenceClassification.from_pretrained(run.folder / "adapter").config
    assert config.id2label == dict(enumerate(settings["task"]["label_names"])) and config.label2id["money"] == 4
    assert not (run.folder / "adapter" / "labels.json").exists()


def test_the_folder_holds_an_adapter_and_nothing_else(finished: tuple[Any, Any]) -> None:
    experiment, run = finished
    names = {"adapter_config.json", "adapter_model.safetensors", "labels.json"}
    names |= {"README.md", "fibec_ray.json", "tokenizer.json", "tokenizer_config.json"}
    names |= {"head.safetensors"} if experiment.backbone.head == "mean_pool" else set()
    assert {path.name for path in (run.folder / "adapter").iterdir()} == names
    assert not [path for path in run.folder.iterdir() if path.name.endswith(".part")]
    config = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["inference_mode"]) == ("LORA", 8, True)
    assert json.loads((run.folder / "summary.json").read_text())["adapter_digest"] == run.adapter_digest
    if "head.safetensors" in names:
        head = load_file(run.folder / "adapter" / "head.safetensors")
        assert {name: value.shape for name, value in head.items()} == {"weight": (6, 32), "bias": (6,)}
