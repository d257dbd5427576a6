"""A process that knows transformers and peft alone gets the logged loss from RUN/adapter, whatever the architecture.

All runs are loaded by one process, as importing the libraries takes longer than they do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rotation import chosen
from safetensors.torch import load_file, save_file

from fibec_ray.config.load import check
from fibec_ray.errors import ModelError
from fibec_ray.learning.federation import Federation
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.runs.simulation import Finished, simulate

quiet_libraries()

CLEAN = Path(__file__).with_name("clean.py")
V = {"vocab_size": 30522}
BASIC = {**V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GROUPED = {**BASIC, "num_key_value_heads": 1}
RELATIVE = {**BASIC, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 16}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": BASIC,
    "roberta": BASIC,
    "distilbert": {**V, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "deberta": RELATIVE,
    "deberta-v2": RELATIVE,
    "modernbert": {**BASIC, "pad_token_id": 0},
    "electra": {**BASIC, "embedding_size": 8},
    "albert": {**BASIC, "embedding_size": 8},
    "mpnet": BASIC,
}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "gemma": {**GROUPED, "head_dim": 8},
    "gpt2": {**V, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "opt": {**V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
            "word_embed_proj_dim": 16},
    "mistral": GROUPED,
    "phi": BASIC,
    "bloom": {**V, "hidden_size": 16, "n_layer": 2, "n_head": 2},
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "xlm-roberta": BASIC,
    "camembert": BASIC,
    "big_bird": BASIC,
    "convbert": BASIC,
    "ernie": BASIC,
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma2": {**GROUPED, "head_dim": 8},
    "gptj": {**V, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    "gpt_neo": {**V, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": BASIC,
    "falcon": {**V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
}
"""Beyond those that are promised."""
CHANGED: dict[str, dict[str, Any]] = {
    "cohere": {**GROUPED, "logit_scale": 0.25},
    "granite": {**GROUPED, "logits_scaling": 8.0},
    "gemma3_text": {**GROUPED, "head_dim": 8, "final_logit_softcapping": 0.1},
    "modernbert-decoder": {**BASIC, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
}
"""Language models that do more than multiply by `lm_head`: they scale logits, cap them, or have another layer."""
EVERY = ENCODERS | DECODERS | MORE | CHANGED
AUTO = {
    "model": "AutoModel",
    "mean_pool": "AutoModel",
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
}
MASKED, CLASSIFIER = "AutoModelForMaskedLM", "AutoModelForSequenceClassification"


def checkpoint(family: str, auto: str, folder: Path) -> Path:
    """A random checkpoint as `auto` saves it: without what other classes of the architecture add."""
    torch.manual_seed(len(family))
    config = transformers.AutoConfig.for_model(family, **EVERY[family])
    config.pad_token_id = 0
    getattr(transformers, auto).from_config(config).save_pretrained(folder)
    return folder


def finished(family: str, head: str, folder: Path, make: Any, auto: str | None = None) -> Finished:
    """A run of one round from such a checkpoint, whose head has learnt something."""
    base = checkpoint(family, auto or AUTO[head], folder / "base")
    settings = make(
        {"name": "fedavg", "peft": {"kind": "lora", "r": 2, "target_modules": "all-linear"}},
        rounds=1,
        num_devices=2,
        cohort_size=2,
        backbone={"init": "pretrained", "config": None, "name": str(base), "head": head},
        data={"max_length": 24, "synthetic": {"num_train": 16, "num_test": 12}},
        local={"learning_rate": 0.02, "batch_size": 4, "epochs": 2},
        evaluation={"every": 1},
    )
    return simulate(check(settings, "test"), folder / "run")


def described(run: Finished, head: str) -> dict[str, Any]:
    """What clean.py needs to know about a run."""
    folder = run.folder.parent
    test = Federation.load(run.folder / "data").test_set()
    batch = test.batch(torch.arange(test.num_samples))
    columns = {**batch.inputs, "labels": batch.labels}
    save_file({name: value.contiguous() for name, value in columns.items()}, folder / "samples.safetensors")
    words = list(run.prepared.label_words or ())
    places = {"adapter": run.folder / "adapter", "samples": folder / "samples.safetensors"}
    return {name: str(path) for name, path in places.items()} | {"head": head, "words": words}


def in_a_clean_process(runs: Sequence[dict[str, Any]], folder: Path) -> list[tuple[float, list[str]]]:
    (folder / "runs.json").write_text(json.dumps(runs))
    command = [sys.executable, "-W", "ignore", str(CLEAN), str(folder / "runs.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=_environment())
    assert done.returncode == 0, done.stderr
    found: list[tuple[float, list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def agree(cases: Mapping[str, tuple[Finished, str]], folder: Path) -> None:
    """The losses are those of the log, and a classifier says the task's class names."""
    found = in_a_clean_process([described(run, head) for run, head in cases.values()], folder)
    logged = {name: run.rows[-1]["global_loss"] for name, (run, _) in cases.items()}
    assert {name: loss for name, (loss, _) in zip(cases, found, strict=True)} == pytest.approx(logged, abs=1e-5)
    names = {tuple(said) for (_, head), (_, said) in zip(cases.values(), found, strict=True) if head == "model"}
    assert names <= {("weather", "travel", "food", "music", "money", "health")}


def drawn(run: Finished) -> set[str]:
    """Modules of the saved adapter that are trained whole."""
    saved = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model.").rpartition(".")[0] for name in saved if ".lora_" not in name}


NAMED = ["bert", "llama", "deberta", "deberta-v2", "modernbert", "bloom"]
"""Architectures that the test below treats specially."""
FEW = [*NAMED, *chosen([name for name in ENCODERS | DECODERS if name not in NAMED], 2, "own head")]


@pytest.mark.parametrize(
    ("families", "changed"),
    [
        pytest.param(FEW, chosen(list(CHANGED), 2, "changed logits"), id="few"),
        pytest.param([*ENCODERS, *DECODERS], list(CHANGED), id="all", marks=pytest.mark.slow),
    ],
)
def test_every_architecture_with_the_head_that_it_brings(
    families: list[str], changed: list[str], tmp_path: Path, tiny_settings: Any
) -> None:
    """From checkpoints of the body alone; of BERT with its language-model head, which has no pooler; and of classifiers
    of other classes, with an adapter of another kind. Also, with that head, language models that change their logits.
    """
    other = {"bert from a language model": ("bert", MASKED), "roberta of 2": ("roberta", CLASSIFIER)}
    other |= {"deberta of 2": ("deberta-v2", CLASSIFIER), "modernbert from a language model": ("modernbert", MASKED)}
    sources = {family: (family, "AutoModel") for family in families} | other
    cases = {
        name: (finished(family, "model", tmp_path / name, tiny_settings, auto), "model")
        for name, (family, auto) in sources.items()
    }
    logits = {
        f"{name} in words": (finished(name, "causal_lm", tmp_path / f"{name} in words", tiny_settings), "causal_lm")
        for name in changed
    }
    agree(cases | logits, tmp_path)
    trained = {name: drawn(run) for name, (run, _) in cases.items()}
    assert trained["bert"] == {"classifier"} and trained["llama"] == {"score"}
    assert trained["deberta"] == trained["deberta-v2"] == {"pooler.dense", "classifier"}
    assert trained["deberta of 2"] == trained["modernbert from a language model"] == {"classifier"}
    assert trained["modernbert"] == {"head.dense", "head.norm", "classifier"}
    assert trained["bert from a language model"] == {"bert.pooler.dense", "classifier"}
    notes = {name: run.prepared.note for name, (run, _) in cases.items()}
    for name in ("roberta of 2", "deberta of 2"):
        assert "the checkpoint has 2 classes, but the task has 6: its classification head" in notes[name]
    assert "transformers has no sdpa for bloom: backbone.attention=auto uses eager" in notes["bloom"]
    assert not any(word in notes["llama"] for word in ("sdpa", "starts at random"))


@pytest.mark.slow
def test_more_architectures_with_the_head_that_they_bring(tmp_path: Path, tiny_settings: Any) -> None:
    agree({name: (finished(name, "model", tmp_path / name, tiny_settings), "model") for name in MORE}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mean_pool", "masked_lm", "causal_lm"])
def test_every_architecture_with_other_heads(head: str, tmp_path: Path, tiny_settings: Any) -> None:
    """Or one line says that it has no such head."""
    families = {"mean_pool": EVERY, "masked_lm": ENCODERS, "causal_lm": DECODERS | CHANGED}[head]
    cases, refused = {}, {}
    for name in families:
        try:
            cases[name] = (finished(name, head, tmp_path / name, tiny_settings), head)
        except ModelError as error:
            refused[name] = str(error)
    agree(cases, tmp_path)
    assert not refused
