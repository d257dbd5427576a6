"""Tiny models with every PEFT kind in them; used by tests of kinds and of the model.

Shapes: 3 samples of 7, 4 and 2 tokens, H = 32, L = 3, V = 50, C = 3.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from batches import of_texts, row, tokens
from conftest import classes

from fibec_ray.curvature.per_sample import catch
from fibec_ray.directions import COEFFICIENTS
from fibec_ray.learning.adapter import save_adapter
from fibec_ray.model_types import Batch
from fibec_ray.models.backbone import prepare
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.part import build
from fibec_ray.parts.peft import PEFTS
from fibec_ray.parts.peft.base import Peft
from fibec_ray.tensors import Tensors
from fibec_ray.types import Layout

quiet_libraries()

BASIC = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {**BASIC, "intermediate_size": 64},
    "roberta": {**BASIC, "intermediate_size": 64},
    "distilbert": {"vocab_size": 50, "dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64},
    "gpt2": {"vocab_size": 50, "n_embd": 32, "n_layer": 3, "n_head": 2, "bos_token_id": 2, "eos_token_id": 2},
    "albert": {**BASIC, "intermediate_size": 64, "embedding_size": 16},
    "xlm": {"vocab_size": 50, "emb_dim": 32, "n_layers": 3, "n_heads": 2, "pad_index": 1},
    "mpnet": {**BASIC, "intermediate_size": 64},
    "modernbert": {**BASIC, "intermediate_size": 64, "pad_token_id": 1},
    "deberta-v2": {**BASIC, "intermediate_size": 64, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "bloom": {"vocab_size": 50, "hidden_size": 32, "n_layer": 3, "n_head": 2},
    "opt": {**BASIC, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "llama": {**BASIC, "intermediate_size": 64, "num_key_value_heads": 1},
    "mistral": {**BASIC, "intermediate_size": 64, "num_key_value_heads": 1},
    "qwen2": {**BASIC, "intermediate_size": 64, "num_key_value_heads": 1},
}
HEADS = {"bert": ("mean_pool", "model", "masked_lm"), "llama": ("mean_pool", "model", "causal_lm")}
SETTINGS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in PEFTS if not PEFTS[kind].trains_base},
    "dora": {"kind": "lora", "use_dora": True},
    "p_tuning with an LSTM": {"kind": "p_tuning", "encoder": "lstm"},
    "prefix with projection": {"kind": "prefix", "projection": True, "hidden_size": 8},
    "lpt with a table": {"kind": "lpt", "instance": False, "layer": 2, "bottleneck": None},
    "lpt from the first block on": {"kind": "lpt", "layer": 0},
    "bitfit of queries and feed-forwards": {"kind": "bitfit", "which": "query_and_ffn"},
}
"""As a method's YAML has them."""
NOT_APPLICABLE = {
    ("bitfit", "llama"): "method.peft: bitfit trains biases, but Llama.* has none; choose lora, or adapter",
    ("bitfit of queries and feed-forwards", "llama"): "Llama.* has none at query, q_proj, .*; set which: all",
}
"""Kind and family -> the error."""
SMALL = {"num_tokens": 4, "r": 4, "bottleneck": 4}
WORDS = (7, 8, 9)
PAD = 1


def made(part: Peft, family: str, head: Any, cache: Path, seed: int = 0, **changes: Any) -> TorchModel:
    config = {"model_type": family, **FAMILIES[family], **changes.pop("config", {})}
    spec = Backbone(init="random", config=config, tokenizer="minilm", head=head, **changes)
    return TorchModel(
        ModelSpec(spec, part, classes(3, WORDS if head.endswith("_lm") else None), seed), prepare(spec, 0, 3, cache)
    )


def part_of(name: str) -> Peft:
    """Smaller than by default."""
    settings = SETTINGS[name]
    fields = PEFTS[settings["kind"]].model_fields
    return build(PEFTS, {key: value for key, value in SMALL.items() if key in fields} | settings)


def stirred(model: TorchModel) -> TorchModel:
    """As if trained: at the start, many kinds have no effect. In evaluation mode.

    FedKSeed's coefficients stay 0: all other values follow from them, and other ones would not fit these.
    """
    rng = torch.Generator().manual_seed(5)
    values = {name: value + 0.2 * torch.randn(value.shape, generator=rng) for name, value in model.read().items()}
    model.load({name: value for name, value in values.items() if name != COEFFICIENTS})
    model.train(False)
    return model


@functools.cache
def ready(name: str, family: str, head: str, cache: Path) -> TorchModel:
    """One for all tests that only look at it."""
    return stirred(made(part_of(name), family, head, cache))


def batch() -> Batch:
    ids = torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([[7], [4], [2]])).long()
    return of_texts(torch.where(mask.bool(), ids, PAD), mask, torch.tensor([0, 2, 1]), mask.sum(1) - 1)


def squares_of(model: TorchModel, data: Batch, names: list[str]) -> Tensors:
    with catch(model.holders, names, 3) as caught:
        losses = model.forward(data).losses
    return caught.squares(torch.autograd.grad(losses.sum(), caught.tensors, allow_unused=True))


def one_by_one(model: TorchModel, data: Batch, names: list[str]) -> Tensors:
    params = [model.trainable[n] for n in names]
    rows = []
    for i in range(3):
        grads = torch.autograd.grad(model.forward(row(data, i)).losses.sum(), params, allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)])
    return {n: torch.stack(grads).square() for n, grads in zip(names, zip(*rows, strict=True), strict=True)}


AUTO = {
    "mean_pool": "AutoModel",
    "model": "AutoModelForSequenceClassification",
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
}


def saved(model: TorchModel, part: Peft, folder: Path) -> Path:
    layout = Layout({n: model.layer_of(n) for n in model.trainable}, 3, model.adapter_config)
    save_adapter(model.read(), layout, part, folder / "adapter")
    return folder / "adapter"


def scores_of(whole: Any, model: TorchModel, head: str, sample: Batch) -> torch.Tensor:
    """From a loaded model's own outputs; prompts come first in them."""
    out = whole(**tokens(sample))
    length = sample.inputs["input_ids"].shape[1]
    if head == "mean_pool":
        own = model.read()
        return out.last_hidden_state[:, -length:].mean(1) @ own["head.weight"].T + own["head.bias"]
    if head == "model":
        return out.logits
    return out.logits[:, -length:][:, sample.inputs["answer_at"][0], list(WORDS)]
