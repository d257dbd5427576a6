"""Every PEFT kind: a saved model opens again with the same scores, and merges into a plain model or says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from batches import first, tokens
from conftest import classes
from peft_models import SETTINGS, batch, made, part_of, stirred

from fibec_ray.errors import ModelError, RunDirError
from fibec_ray.export.saved import open_saved
from fibec_ray.export.write import export_adapter, export_merged
from fibec_ray.learning.adapter import save_adapter
from fibec_ray.models.torch_model import TorchModel
from fibec_ray.runs.save import complete
from fibec_ray.runs.saved_model import SavedModel
from fibec_ray.runs.simulation import cache_dir
from fibec_ray.types import Layout

CASES = {**{name: name for name in SETTINGS}, "full": "full"}
NO_PLACE = {
    "prompt", "p_tuning", "p_tuning with an LSTM", "prefix", "prefix with projection", "adapter", "idpg", "lpt",
    "lpt with a table", "lpt from the first block on", "attempt",
}  # fmt: skip
"""Kinds that add prompts or modules, which a plain model has no place for."""


def part(name: str) -> Any:
    from fibec_ray.parts.peft.full import Full

    return Full() if name == "full" else part_of(name)


def saved(name: str, head: str, folder: Path, family: str = "bert", **changes: Any) -> TorchModel:
    """A model of three classes, as if trained, and its folder."""
    kind = part(name)
    model = stirred(made(kind, family, head, cache_dir(), **changes))
    model.load({n: torch.zeros_like(value) for n, value in model.trainable.items() if n.endswith(".sparse")})
    about = SavedModel(
        name="test", method="fedavg", round=1, created="2026-01-01", versions={}, backbone=model._spec,
        peft=kind.model_dump(mode="json"), seed=0, label_names=("a", "b", "c"),
        answers=classes(3, (7, 8, 9) if head.endswith("_lm") else None), batch_size=4,
        task={"name": "test", "label_names": ("a", "b", "c")}, max_length=16,
    )  # fmt: skip
    layout = Layout({n: model.layer_of(n) for n in model.trainable}, 3, model.adapter_config)
    save_adapter(model.read(), layout, kind, folder, about.label_names, lambda draft: complete(about, draft, folder))
    return model


@pytest.mark.parametrize(
    ("name", "head"),
    [("lora", "mean_pool"), *((name, "model") for name in sorted(NO_PLACE))]
    + [pytest.param(name, "mean_pool", marks=pytest.mark.slow) for name in CASES],
)
@torch.no_grad()
def test_a_saved_model_opens_again(name: str, head: str, tmp_path: Path) -> None:
    """Kinds that merge are opened by the next test too."""
    model = saved(name, head, tmp_path / "adapter")
    again = open_saved(tmp_path / "adapter", None, "cpu")
    torch.testing.assert_close(again.engine.forward(batch()).scores, model.forward(batch()).scores)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_it_merges_into_a_plain_classifier_or_says_why_not(name: str, tmp_path: Path) -> None:
    model, data = saved(name, "model", tmp_path / "adapter"), batch()
    if name in NO_PLACE:
        with pytest.raises(ModelError, match="adds modules or prompts .* export the adapter instead"):
            export_merged(tmp_path / "adapter", tmp_path / "plain")
        assert not (tmp_path / "plain").exists() and not list(tmp_path.glob(".*"))
        return
    export_merged(tmp_path / "adapter", tmp_path / "plain")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    logits = plain(**tokens(data)).logits
    torch.testing.assert_close(logits, model.forward(data).scores, rtol=0, atol=1e-5)
    assert plain.config.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize(
    ("family", "head", "auto"),
    [
        ("llama", "causal_lm", "AutoModelForCausalLM"),
        ("llama", "model", "AutoModelForSequenceClassification"),
        ("bert", "masked_lm", "AutoModelForMaskedLM"),
        ("gpt2", "model", "AutoModelForSequenceClassification"),
    ],
)
@torch.no_grad()
def test_heads_and_families_merge(family: str, head: str, auto: str, tmp_path: Path) -> None:
    model, data = saved("lora", head, tmp_path / "adapter", family), batch()
    export_merged(tmp_path / "adapter", tmp_path / "plain")
    plain = getattr(transformers, auto).from_pretrained(tmp_path / "plain").eval()
    before = model.base(**tokens(first(data, 1))).logits
    after = plain(**tokens(first(data, 1))).logits
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_bfloat16_base_is_merged_in_float32(tmp_path: Path) -> None:
    """The run's rounded base, not the checkpoint's: as exact as the run itself."""
    model, data = saved("lora", "mean_pool", tmp_path / "adapter", dtype="bfloat16"), batch()
    export_merged(tmp_path / "adapter", tmp_path / "plain")
    plain = transformers.AutoModel.from_pretrained(tmp_path / "plain").eval()
    assert plain.dtype == torch.float32
    states = plain(**tokens(first(data, 1))).last_hidden_state
    mine = model.base(**tokens(first(data, 1))).last_hidden_state
    torch.testing.assert_close(states, mine.float(), rtol=0.05, atol=0.05)


def test_changed_weights_are_found(tmp_path: Path) -> None:
    saved("lora", "model", tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunDirError, match="adapter_model.safetensors: has changed since the run saved it"):
        open_saved(tmp_path / "adapter", None, "cpu")
    weights.unlink()
    with pytest.raises(RunDirError, match="adapter_model.safetensors: is missing"):
        open_saved(tmp_path / "adapter", None, "cpu")


def test_an_export_goes_to_an_empty_folder_alone(tmp_path: Path) -> None:
    saved("lora", "model", tmp_path / "adapter")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(RunDirError, match="there: is not empty; choose another folder"):
        export_adapter(tmp_path / "adapter", tmp_path / "there")
