"""Full training of a pretrained backbone: everything moves, in memory of its own, and is saved as a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from batches import tokens
from conftest import TINY_LLAMA
from safetensors.torch import load_file

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.federation import Federation
from fibec_ray.model_types import Batch
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.peft.full import Full
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.runs.simulation import cache_dir, prepare, simulate

FULL = {"name": "full", "peft": "full"}
BACKBONES: dict[str, dict[str, Any]] = {
    "encoder, our head": {},
    "encoder, its own head": {"head": "model"},
    "encoder, label words": {"head": "masked_lm"},
    "decoder, label words": {"head": "causal_lm", "config": TINY_LLAMA},
}
each_backbone = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)


@pytest.fixture
def worker_spec(backbone: dict[str, Any], tiny_settings: Any, tmp_path: Path) -> WorkerSpec:
    experiment = check(tiny_settings(FULL, backbone=backbone, data={"max_length": 40}), "test")
    prepared = prepare(experiment, tmp_path)
    return WorkerSpec(experiment.job(prepared.answers(experiment.task)), tmp_path, cache_dir())


def model_of(worker_spec: WorkerSpec, peft: Any) -> TorchModel:
    job = worker_spec.job
    assert not hasattr(job.backbone, "kind")
    return TorchModel(ModelSpec(job.backbone, peft, job.answers, job.seed), worker_spec.prepare_base())  # type: ignore


def samples(worker_spec: WorkerSpec) -> Batch:
    return worker_spec.federation().test_set().batch(torch.arange(4))


@each_backbone
def test_every_weight_is_trainable_and_the_outputs_are_the_bases(worker_spec: WorkerSpec) -> None:
    """But for a pooler that nothing looks at. LoRA starts at the base's outputs too, as B = 0."""
    full, lora = model_of(worker_spec, Full()), model_of(worker_spec, Lora())
    base = full.peft_model.base_model.model
    whole = {f"base_model.model.{name}" for name, _ in base.named_parameters() if not name.startswith("pooler.")}
    own = {"head.weight", "head.bias"} if worker_spec.job.backbone.head == "mean_pool" else set()  # type: ignore[union-attr]
    assert set(full.trainable) == whole | own
    assert all(p.requires_grad for p in full.trainable.values())
    assert {full.layer_of(name) for name in whole} == {None, 0, 1, 2}
    heads = own | {name for name in whole if ".classifier." in name}
    assert {name for name in full.trainable if not full.is_adapter(name)} == heads
    if not own:  # which the two draw after different numbers
        torch.testing.assert_close(full.forward(samples(worker_spec)).losses, lora.forward(samples(worker_spec)).losses)


@pytest.mark.parametrize("backbone", [{}])
def test_training_leaves_the_stored_base_and_other_models_alone(worker_spec: WorkerSpec) -> None:
    one, other = model_of(worker_spec, Full()), model_of(worker_spec, Full())
    files = sorted(worker_spec.prepare_base().glob("*.safetensors"))
    before = [path.read_bytes() for path in files]
    untouched = other.forward(samples(worker_spec)).losses
    with torch.no_grad():
        for p in one.trainable.values():
            p.add_(1.0)
    assert files and [path.read_bytes() for path in files] == before
    assert torch.equal(other.forward(samples(worker_spec)).losses, untouched)
    assert torch.equal(model_of(worker_spec, Full()).forward(samples(worker_spec)).losses, untouched)


@pytest.mark.parametrize("backbone", [{"dropout": False}, {"dropout": True}], ids=["off", "on"])
def test_the_bases_dropout_is_still_its_own_switch(worker_spec: WorkerSpec) -> None:
    model = model_of(worker_spec, Full())
    model.train(True)
    one, two = (model.forward(samples(worker_spec)).losses for _ in range(2))
    assert torch.equal(one, two) != worker_spec.job.backbone.dropout  # type: ignore[union-attr]


@pytest.mark.parametrize("backbone", [{}])
def test_gradients_of_weights_cost_a_pass_more(worker_spec: WorkerSpec) -> None:
    full, lora = model_of(worker_spec, Full()), model_of(worker_spec, Lora())
    for model in (full, lora):
        model.forward(samples(worker_spec))
    forward = lora.work.flops - lora.work.backward_flops
    assert (lora.work.flops, full.work.flops) == (2 * forward, 3 * forward)
    assert (lora.work.backward_flops, full.work.backward_flops) == (forward, 2 * forward)


@each_backbone
def test_transformers_loads_what_a_run_leaves(backbone: dict[str, Any], tiny_settings: Any, tmp_path: Path) -> None:
    experiment = check(tiny_settings(FULL, rounds=1, backbone=backbone, data={"max_length": 40}), "test")
    run = simulate(experiment, tmp_path / "run")
    head = experiment.backbone.head
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    names |= {"README.md", "fibec_ray.json"} | ({"head.safetensors"} if head == "mean_pool" else set())
    assert {path.name for path in (run.folder / "adapter").iterdir()} == names
    auto = {
        "mean_pool": "AutoModel",
        "model": "AutoModelForSequenceClassification",
        "masked_lm": "AutoModelForMaskedLM",
        "causal_lm": "AutoModelForCausalLM",
    }[head]
    loaded = getattr(transformers, auto).from_pretrained(run.folder / "adapter").eval()
    saved = load_file(run.folder / "adapter" / "model.safetensors")
    own = WorkerSpec(experiment.job(run.prepared.answers(experiment.task)), run.folder, cache_dir())
    model = own.worker().model
    values = {f"base_model.model.{name}": value for name, value in saved.items()}
    assert not all(torch.equal(value, model.trainable[name]) for name, value in values.items())
    model.load(values)
    batch = Federation.load(run.folder / "data").test_set().batch(torch.arange(4))
    inputs = tokens(batch)
    with torch.no_grad():
        ours = model.peft_model.base_model.model(**inputs)[0]  # type: ignore[attr-defined]
        torch.testing.assert_close(loaded(**inputs)[0], ours)


def test_what_does_not_fit_is_refused(tiny_settings: Any) -> None:
    with pytest.raises(ConfigError, match="method.peft: full trains the base itself, in float32; set backbone.dtype"):
        check(tiny_settings(FULL, backbone={"dtype": "bfloat16"}), "test")
    for axes in ({"sharing": "matrices"}, {"sharing": "gal", "mask": "frozen_matrix"}):
        with pytest.raises(ConfigError, match="works on LoRA's matrices, but peft 'full' has none"):
            check(tiny_settings(FULL | axes), "test")
