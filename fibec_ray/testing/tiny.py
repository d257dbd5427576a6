"""Experiments that run in a second on embedded data: a random encoder, a random decoder, a network from scratch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check
from fibec_ray.config.names import config_folder
from fibec_ray.config.reading import read_yaml
from fibec_ray.errors import ConfigError
from fibec_ray.method import AXES

PLACES = read_yaml(Path(__file__).with_name("tiny.yaml"))
SGD = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0}


def experiment(where: str, parts: Mapping[str, Any]) -> Experiment:
    """An experiment of three rounds with these parts.

    Tries each kind of sharing, with AdamW and SGD, until one is accepted. Raises the ConfigError of the first attempt
    if none is.
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
