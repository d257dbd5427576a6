"""Experiments that run in a second: a random encoder, a random decoder, a network from scratch, on embedded data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check, config_folder, read_yaml
from fibec_ray.errors import ConfigError
from fibec_ray.method import AXES

PLACES = read_yaml(Path(__file__).with_name("tiny.yaml"))
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
