"""The models and data that `fibec_ray.bench.gpu` measures with."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fibec_ray import seeds
from fibec_ray.bench.workload import words
from fibec_ray.files.run_dir import write_yaml

STEPS = 4
"""optimiser steps of a device-round: one epoch"""
CLASSES = ("one", "two", "three", "four")
NUM_TEST = 16
SEED = 0


@dataclass(frozen=True)
class Case:
    """A model, and the batches that it is trained with. config: of transformers; {}: MiniLM's own weights. only: kinds
    of rows to measure; (): all.
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    batch: int
    tokens: int
    lanes: tuple[int, ...]
    config: Mapping[str, Any]
    decoder: bool = False
    only: tuple[str, ...] = ()

    @property
    def targets(self) -> list[str]:
        """The modules with LoRA."""
        return ["q_proj", "v_proj"] if self.decoder else ["query", "value"]

    @property
    def flops(self) -> float:
        """Operations of a step: products with frozen weights and attention, forward, and backward to the inputs."""
        matrices = 4 * self.hidden**2 + (3 if self.decoder else 2) * self.hidden * self.intermediate
        per_token = 2.0 * matrices * self.layers + 4.0 * self.layers * self.hidden * self.tokens
        return 2 * self.batch * self.tokens * per_token

    @property
    def tokens_per_round(self) -> int:
        """Tokens that a device trains on in a round."""
        return STEPS * self.batch * self.tokens

    @property
    def backbone(self) -> dict[str, Any]:
        """The experiment's `backbone` section."""
        source = {"init": "random", "config": dict(self.config), "tokenizer": "minilm"} if self.config else {}
        return {"dtype": "bfloat16", "head": "mean_pool", **source}


def bert(name: str, hidden: int, layers: int, vocabulary: int, batch: int, tokens: int, lanes: tuple[int, ...]) -> Case:
    """An encoder of this size with random weights."""
    config = {
        "model_type": "roberta", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden // 64), "intermediate_size": 4 * hidden, "vocab_size": vocabulary,
        "max_position_embeddings": tokens + 8,
    }  # fmt: skip
    return Case(name, hidden, 4 * hidden, layers, vocabulary, batch, tokens, lanes, config)


def llama(name: str, hidden: int, intermediate: int, layers: int, batch: int, tokens: int) -> Case:
    """A decoder of this size with random weights."""
    heads = max(1, hidden // 128)
    config = {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "intermediate_size": intermediate, "vocab_size": 32000,
    }  # fmt: skip
    return Case(name, hidden, intermediate, layers, 32000, batch, tokens, (1, 8, 32, 64), config, decoder=True)


MINILM = Case("MiniLM", 384, 1536, 6, 30522, 8, 32, (1, 8, 20, 32, 64), {})
CASES = {
    "minilm": MINILM,
    "roberta-large": bert("RoBERTa-large", 1024, 24, 50265, 8, 128, (1, 8, 32, 64)),
    "llama7b-8": llama("LLaMA-7B, 8 blocks", 4096, 11008, 8, 4, 64),
}
SHORT = {
    "minilm": replace(MINILM, lanes=(1, 20), only=("engine",)),
    "roberta-large": replace(CASES["roberta-large"], lanes=(1, 32), only=("bare", "kernels", "engine")),
}
"""The rows that the targets need."""
SMALLEST = {"tiny": bert("tiny BERT", 64, 2, 30522, 2, 16, (1, 2))}


def write(case: Case, cohort_size: int, rounds: int, folder: Path, fleet: Mapping[str, Any]) -> Path:
    """Write data and experiment: as many devices as a round has, each with the samples of its steps. Returns the
    experiment's file.
    """
    folder.mkdir(parents=True)
    known = words()
    for name, count in (("train", cohort_size * STEPS * case.batch), ("test", NUM_TEST)):
        rng = seeds.numpy_generator(SEED, "bench", name)
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for label, row in zip(rng.integers(len(CLASSES), size=count), range(count), strict=True):
                picks = rng.integers(len(known), size=case.tokens - 2)
                writer.writerow([" ".join(known[i] for i in picks), CLASSES[label if row >= len(CLASSES) else row]])
    settings = {
        "name": "bench-gpu",
        "seed": SEED,
        "rounds": rounds,
        "num_devices": cohort_size,
        "cohort_size": cohort_size,
        "task": {
            "name": "bench",
            "text_columns": ["text"],
            "label_names": list(CLASSES),
            "verbaliser": list(CLASSES),
            "template": "<mask> {a}",
            "causal_template": "{a}",
        },
        "data": {
            "train": str(folder / "train.csv"),
            "test": str(folder / "test.csv"),
            "max_length": case.tokens,
        },
        "partition": "iid",
        "method": {"name": "fedavg", "peft": {"kind": "lora", "r": 8, "alpha": 16, "target_modules": case.targets}},
        "local": {"learning_rate": 1e-3, "schedule": "constant", "batch_size": case.batch, "clip": 1.0},
        "backbone": case.backbone,
        "evaluation": {"every": rounds},
        "fleet": dict(fleet),
    }
    write_yaml(folder / "experiment.yaml", settings)
    return folder / "experiment.yaml"
