"""What a checkpoint lacks of a classification head is trained, saved and restored, with every PEFT kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from batches import tokens
from conftest import classes
from peft_models import FAMILIES, SETTINGS, SMALL, batch, saved, stirred

from fibec_ray.errors import ModelError
from fibec_ray.heads import head_modules
from fibec_ray.models.backbone import prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.part import build
from fibec_ray.parts.peft import PEFTS
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.library import InLinears
from fibec_ray.parts.peft.load import load_adapter
from fibec_ray.parts.peft.own import Own

CLASSIFIER = transformers.AutoModelForSequenceClassification
HEADS = {
    "deberta-v2": {"pooler.dense", "classifier"},
    "modernbert": {"head.dense", "head.norm", "classifier"},
    "distilbert": {"pre_classifier", "classifier"},
}
DO_NOT_APPLY = ("adapter", "prefix", "lpt", "sparse_lora")
"""Beginnings of names of kinds that do not know how these families compute. sparse_lora saves the LoRA that is nearest
to what it learnt, which is not the same."""
CASES = [
    (name, family)
    for name in SETTINGS
    for family in ("deberta-v2", "modernbert")
    if not name.startswith(DO_NOT_APPLY) and not (name.startswith("bitfit") and family == "modernbert")  # has no biases
]


def part_of(name: str) -> Peft:
    settings = SETTINGS[name]
    kind = PEFTS[settings["kind"]]
    small = {key: value for key, value in SMALL.items() if key in kind.model_fields}
    targets = {"target_modules": "all-linear"} if issubclass(kind, InLinears) else {}
    if kind.model_fields["kind"].default == "ia3":
        targets["feedforward_modules"] = ()  # type: ignore[assignment]
    return build(PEFTS, small | targets | settings)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints without heads, by family."""
    folder = tmp_path_factory.mktemp("bodies")
    for family in HEADS:
        config = transformers.AutoConfig.for_model(family, **{**FAMILIES[family], "pad_token_id": 1})
        transformers.AutoModel.from_config(config).save_pretrained(folder / family)
    return folder


def made(family: str, part: Peft, bodies: Path) -> TorchModel:
    spec = Backbone(name=str(bodies / family), tokenizer="minilm", head="model")
    return TorchModel(ModelSpec(spec, part, classes(3), 0), prepare(spec, 0, 3, bodies / "cache"))


@pytest.mark.parametrize(("name", "family"), CASES)
@pytest.mark.filterwarnings("ignore:Specified to not save vera_A")
@torch.no_grad()
def test_the_saved_adapter_brings_the_whole_head(name: str, family: str, bodies: Path, tmp_path: Path) -> None:
    """To a base whose own head is another one."""
    part = part_of(name)
    model = stirred(made(family, part, bodies))
    heads = {n for n in model.trainable if not model.is_adapter(n)}
    assert all(model.layer_of(n) is None for n in heads)
    plain = {n.removeprefix("base_model.model.").removeprefix("base_model.").rpartition(".")[0] for n in heads}
    assert plain == HEADS[family]
    folder = saved(model, part, tmp_path)
    torch.manual_seed(5)
    base = CLASSIFIER.from_pretrained(bodies / family, num_labels=3, attn_implementation="eager").eval()
    whole: Any = (
        load_adapter(base, folder) if isinstance(part, Own) else peft.PeftModel.from_pretrained(base, folder).eval()
    )
    logits = whole(**tokens(batch())).logits
    torch.testing.assert_close(logits, model.forward(batch()).scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", HEADS)
def test_every_tensor_of_the_head_moves_in_a_step(family: str, bodies: Path) -> None:
    model = stirred(made(family, part_of("lora"), bodies))
    heads = [name for name in model.trainable if not model.is_adapter(name)]
    out, _ = model.per_sample_grads(batch(), names=heads)
    grads = model.grad(out.losses.sum(), [model.trainable[name] for name in heads])
    assert all(grad is not None and grad.any() for grad in grads)


def test_a_head_that_peft_cannot_find_by_its_name_is_refused() -> None:
    model = CLASSIFIER.from_config(transformers.AutoConfig.for_model("bert", **FAMILIES["bert"]))
    with pytest.raises(ModelError, match=r"new weights in 'dropout', which .*; set backbone.head=mean_pool, or"):
        head_modules(model, ["dropout.weight"])
    with pytest.raises(ModelError, match="new weights in 'the model itself'"):
        head_modules(model, ["scale"])
    assert head_modules(model, ["classifier.weight", "bert.pooler.dense.weight"]) == ["bert.pooler.dense", "classifier"]
