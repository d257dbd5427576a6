"""Experiments that run in a second: a random encoder, a random decoder, a network from scratch, on embedded data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check, config_folder, read_yaml
from fibec_ray.errors import ConfigError
from fibec_ray.method import AXES

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
RANDOM = {"init": "random", "tokenizer": "minilm"}
TEXT = {"task": "synthetic", "data": {"max_length": 20, "synthetic": {"num_train": 48, "num_test": 24}}}
"""Every text is cut to the same length."""
PLACES: dict[str, dict[str, Any]] = {
    "encoder": {
        **TEXT,
        "partition": "iid",
        "backbone": {**RANDOM, "config": {"model_type": "bert", "vocab_size": 30522, **SIZES}},
    },
    "decoder": {
        **TEXT,
        "backbone": {
            **RANDOM,
            "config": {"model_type": "llama", "vocab_size": 30522, "num_key_value_heads": 2, **SIZES},
            "head": "causal_lm",
        },
    },
    "network": {
        "task": "regression",
        "data": {"regression": {"num_train": 120, "num_test": 40}},
        "partition": {"kind": "pathological", "classes_per_device": 1},
        "backbone": {"kind": "mlp", "hidden": [6, 5]},
    },
}
SGD = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0}


def experiment(where: str, parts: Mapping[str, Any]) -> Experiment:
    """Three rounds with these parts. What they need beside them is tried: each way of sharing, plain SGD.

    Raises ConfigError if no try is accepted, with what is wrong with the first.
    """
    first: ConfigError | None = None
    for settings in _tries(where, parts):
        try:
            return check(settings, f"a small experiment ({where})")
        except ConfigError as error:
            first = first or error
    assert first is not None
    raise first


def _tries(where: str, parts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    settings = PLACES[where] | {"name": where, "seed": 3, "rounds": 3, "num_devices": 6, "cohort_size": 5}
    settings |= {"task": read_yaml(config_folder() / "tasks" / f"{settings['task']}.yaml")}
    settings |= {"evaluation": {"every": 2}, "fleet": {"kind": "local"}}
    sharings: list[dict[str, Any]] = [{}, *({"sharing": kind} for kind in AXES["sharing"])]
    for local, beside in product(({}, SGD), sharings):
        training = {"batch_size": 4, "learning_rate": 0.01, **local}
        yield {**settings, "local": training, "method": {"name": "own", **beside, **parts}}
