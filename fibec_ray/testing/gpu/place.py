"""Where a step works, and the small runs that it compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check
from fibec_ray.config.names import config_folder
from fibec_ray.config.reading import read_yaml
from fibec_ray.errors import FibecError
from fibec_ray.parts.blame import what_failed
from fibec_ray.runs.simulation import Finished, simulate
from fibec_ray.testing.gpu.lines import Line

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
BERT = {"model_type": "bert", "vocab_size": 30522, **TINY}
LLAMA = {"model_type": "llama", "vocab_size": 30522, "num_key_value_heads": 2, **TINY}
T5 = {"model_type": "t5", "vocab_size": 30522, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
VIT = {"model_type": "vit", "image_size": 16, "patch_size": 8, **TINY}
CLOSE = 1e-4
"""Largest relative difference between equal computations in float32 on two devices."""
Tensors = Mapping[str, Tensor]


class Wrong(Exception):
    """A check failed; the message says why."""


class Unavailable(Exception):
    """Something cannot be checked here; the message says why."""


@dataclass(frozen=True)
class Place:
    """device: cuda, or cpu to try the check itself. small: fewer methods and smaller models. only: methods to check;
    (): all.
    """

    device: str
    small: bool
    folder: Path
    only: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """True if a GPU is checked."""
        return self.device == "cuda"


_numbers = count()


def experiment(method: str = "fedavg", **changes: Any) -> Experiment:
    """A small experiment on embedded data: a random BERT, six devices, five per round, two rounds.

    changes: settings; the sections backbone, local, evaluation and fleet are merged into the experiment's own.
    """
    settings: dict[str, Any] = {
        "name": "gpu-check",
        "seed": 3,
        "rounds": 2,
        "num_devices": 6,
        "cohort_size": 5,
        "task": "synthetic",
        "method": read_yaml(config_folder() / "methods" / f"{method}.yaml"),
        "data": {"max_length": 24, "synthetic": {"num_train": 48, "num_test": 24}},
        "backbone": {"init": "random", "config": BERT, "tokenizer": "minilm"},
        "local": {"batch_size": 4, "learning_rate": 0.01},
        "evaluation": {"every": 2},
        "fleet": {"kind": "local"},
    }
    for key, value in changes.items():
        merges = key in ("backbone", "local", "evaluation", "fleet") and "kind" not in value
        settings[key] = {**settings[key], **value} if merges else value
    settings["task"] = read_yaml(config_folder() / "tasks" / f"{settings['task']}.yaml")
    return check(settings, "the GPU check")


def run(place: Place, chosen: Experiment, **fleet: Any) -> Finished:
    """Run an experiment in a new folder. fleet: changes of its `fleet` section."""
    settings = chosen.model_dump(mode="json")
    settings["fleet"] = {"kind": "local", "device": place.device, "lanes": 1, **fleet}
    return simulate(check(settings, "the GPU check"), place.folder / f"run-{next(_numbers):04d}")


def adapter(finished: Finished) -> dict[str, Tensor]:
    """The saved tensors of a run, in float64."""
    files = sorted((finished.folder / "adapter").glob("*.safetensors"))
    found = {f"{path.stem}/{name}": value for path in files for name, value in load_file(path).items()}
    return {name: value.double() for name, value in found.items()}


def apart(found: Tensors, wanted: Tensors) -> float:
    """|found - wanted| / |wanted|. Raises Wrong if the names differ or a value is not finite."""
    if found.keys() != wanted.keys():
        raise Wrong(f"other tensors: {sorted(found.keys() ^ wanted.keys())[:3]}")
    difference = _norm({name: found[name] - wanted[name] for name in wanted})
    if not torch.isfinite(torch.tensor(difference)):
        raise Wrong("values that are not finite")
    return difference / max(_norm(wanted), 1e-30)


def close(found: Finished, wanted: Finished, limit: float = CLOSE) -> str:
    """Check that two runs end in the same adapter. Returns the difference in words. Raises Wrong."""
    difference = apart(adapter(found), adapter(wanted))
    if difference > limit:
        raise Wrong(f"relative difference {difference:.1e}, allowed {limit:.0e}")
    return f"relative difference {difference:.1e}"


def same(found: Finished, wanted: Finished) -> str:
    """Check that two runs end in the same adapter, bit for bit. Raises Wrong."""
    if found.adapter_digest != wanted.adapter_digest:
        difference = apart(adapter(found), adapter(wanted))
        raise Wrong(f"not the same bits, relative difference {difference:.1e}")
    return "the same bits"


def line(what: str, work: Callable[[], str]) -> Line:
    """The result of one check. work: returns what it found."""
    try:
        return Line(what, "ok", work())
    except Unavailable as error:
        return Line(what, "skipped", _flat(error))
    except (Wrong, FibecError) as error:
        return Line(what, "FAILED", _flat(error))
    except Exception as error:
        return Line(what, "FAILED", _flat(what_failed(error)))


def lines_of(*checks: tuple[str, Callable[[], str]]) -> Iterator[Line]:
    """Run checks one after another."""
    for what, work in checks:
        yield line(what, work)


def _norm(values: Tensors) -> float:
    return float(sum(value.pow(2).sum() for value in values.values())) ** 0.5


def _flat(text: object) -> str:
    return " ".join(str(text).split())[:500].replace("|", "/")  # for a table
