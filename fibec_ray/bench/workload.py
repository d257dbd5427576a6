"""The reference workload, written once for all contenders.

A workload is a folder:

    experiment.yaml, train.csv, test.csv      what `fibec-ray run` is given
    arrays/                                   the same samples as token ids, and the rows of every device-round

Samples are 30 random words of one token each, between [CLS] and [SEP]. fibec_ray reads them as text; the arrays hold
its encoded result. So every contender trains the same devices on the same batches from the same initial adapter.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from fibec_ray import seeds
from fibec_ray.config.load import load_experiment
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.files.run_dir import write_json, write_yaml
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.device import DeviceWorker
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.planning import plan_round
from fibec_ray.models.backbone import load_tokenizer, prepare
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.models.spec import Backbone
from fibec_ray.runs.simulation import cache_dir
from fibec_ray.runs.simulation import prepare as prepare_data

SEED = 0
LENGTH = 32
"""tokens of every sample"""
PER_DEVICE = 32
"""samples of every device"""
CLASSES = ("one", "two", "three", "four", "five", "six")
NUM_TEST = 64
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, CLIP = 8, 1e-3, 0.01, 1.0
LORA = {"r": 8, "alpha": 16, "target_modules": ["query", "value"]}
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a workload. rounds: all rounds, unmeasured ones included."""

    num_devices: int
    cohort_size: int
    rounds: int

    @property
    def num_samples(self) -> int:
        """Number of training samples."""
        return PER_DEVICE * self.num_devices


def write_texts(sizes: Sizes, folder: Path) -> Path:
    """Write the data and the experiment. Returns the experiment's file."""
    folder.mkdir(parents=True)
    known = words()
    for name, count in (("train", sizes.num_samples), ("test", NUM_TEST)):
        rng = seeds.numpy_generator(SEED, "bench", name)
        picks = rng.integers(len(known), size=(count, LENGTH - 2))
        labels = rng.integers(len(CLASSES), size=count)
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(
                (" ".join(known[i] for i in pick), CLASSES[label])
                for pick, label in zip(picks.tolist(), labels.tolist(), strict=True)
            )
    write_yaml(folder / "experiment.yaml", experiment(sizes, folder))
    return folder / "experiment.yaml"


def experiment(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Settings as plain values: FedAvg on LoRA with default parts. Only the last round is evaluated."""
    return {
        "name": "bench",
        "seed": SEED,
        "rounds": sizes.rounds,
        "num_devices": sizes.num_devices,
        "cohort_size": sizes.cohort_size,
        "task": {
            "name": "bench",
            "text_columns": ["text"],
            "label_names": list(CLASSES),
            "verbaliser": list(CLASSES),
            "template": "<mask> {a}",
            "causal_template": "{a}",
        },
        "data": {"train": str(folder / "train.csv"), "test": str(folder / "test.csv"), "max_length": LENGTH},
        "partition": "iid",
        "method": {"name": "fedavg", "peft": {"kind": "lora", **LORA}},
        "local": {
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
            "weight_decay": WEIGHT_DECAY,
            "batch_size": BATCH_SIZE,
            "clip": CLIP,
        },
        "evaluation": {"every": sizes.rounds},
        "fleet": {"kind": "ray", "placement": "pooled", "num_actors": 2, "threads": 1},
    }


def write_arrays(config: Path) -> Path:
    """Write `arrays/` next to the experiment, from its data, plans and seeds. Returns the folder."""
    quiet_libraries()
    chosen = load_experiment(config)
    run = config.parent / "run"
    prepared = prepare_data(chosen, run)
    worker_spec = WorkerSpec(chosen.job(prepared.answers(chosen.task)), run, cache_dir())
    worker, federation = worker_spec.worker(), worker_spec.federation()
    plans = [plan_round(worker_spec.job, t) for t in range(chosen.rounds)]
    rows = [[_rows(federation, worker, device, plan.round) for device in plan.cohort] for plan in plans]
    folder = config.parent / "arrays"
    folder.mkdir()
    assert isinstance(federation.train, EncodedSet)
    np.save(folder / "tokens.npy", _square(federation.train))
    np.save(folder / "labels.npy", federation.train.labels)
    np.save(folder / "rows.npy", np.array(rows))
    save_file(worker.initial, folder / "initial.safetensors")
    write_json(folder / "settings.json", _settings())
    return folder


def _rows(federation: Federation, worker: DeviceWorker, device: int, round_: int) -> list[list[int]]:
    """(steps, batch) rows of the training set, in the order in which a device trains on them in a round."""
    own = federation.train_rows[device]
    return [own[batch.numpy()].tolist() for batch in worker.epochs(worker.batches(device), round_, device)]


def _square(encoded: EncodedSet) -> NDArray[np.int64]:
    """(N, S) token ids; all samples are of one length."""
    assert (np.diff(encoded.offsets) == LENGTH).all(), "a word was not one token"
    return encoded.tokens.reshape(-1, LENGTH).astype(np.int64)


def _settings() -> dict[str, Any]:
    """Settings that a contender needs besides the arrays. `base` is the folder of the frozen weights, by dtype."""
    specs = {dtype: Backbone.model_validate({"dtype": dtype}) for dtype in DTYPES}
    base = {dtype: str(prepare(spec, SEED, len(CLASSES), cache_dir())) for dtype, spec in specs.items()}
    values = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "clip": CLIP, "lora": LORA, "base": base}
    return {**values, "num_classes": len(CLASSES)}


def words() -> Sequence[str]:
    """Words of MiniLM's vocabulary, each of them one token."""
    vocabulary = load_tokenizer(Backbone()).get_vocab()
    return sorted(word for word in vocabulary if re.fullmatch("[a-z]{3,}", word))
