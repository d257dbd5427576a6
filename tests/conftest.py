"""What tests share: a tiny encoder and decoder built from their config classes, small experiments, one Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else Ray would write a token to the home of whoever runs the tests
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rotation import seed

from fibec_ray.answers import Answers
from fibec_ray.config.load import check, load_method
from fibec_ray.config.names import config_folder, method_files
from fibec_ray.config.reading import parse_override
from fibec_ray.data.encoded import ArrayShard, EncodedSet
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.garbage import collect_in_large_steps
from fibec_ray.learning.planning import plan_round
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import Setting, with_inner
from fibec_ray.reports import DeviceReport
from fibec_ray.runs.simulation import cache_dir, prepare

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
TINY_BERT = {"model_type": "bert", "vocab_size": 30522, **TINY}
TINY_VIT = {"model_type": "vit", "image_size": 16, "patch_size": 8, **TINY, "num_hidden_layers": 2}
TINY_SWIN = {
    "model_type": "swin", "image_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 2],
    "num_heads": [2, 2],
}  # fmt: skip
TINY_CONVNEXT = {
    "model_type": "convnext", "image_size": 16, "patch_size": 2, "num_stages": 2, "hidden_sizes": [8, 16],
    "depths": [1, 2], "layer_scale_init_value": 0.5,
}  # fmt: skip
TINY_LLAMA = {"model_type": "llama", "vocab_size": 30522, "num_key_value_heads": 2, **TINY}


TEXTS = Answers(likelihood="tokens", num_scores=0, readout="response")
VALUES = Answers(likelihood="normal", num_scores=1)


def classes(count: int, words: Sequence[int] | None = None) -> Answers:
    """Answers of a classification. words: the verbaliser's token ids."""
    label_words = None if words is None else tuple(words)
    return Answers(likelihood="categorical", num_scores=count, label_words=label_words)


ON_RAY = (Path(__file__).parent / "fleets", Path(__file__).parent / "jobs")
"""Folders whose processes in `make test` may start Ray."""


def pytest_configure() -> None:
    """Before test modules import transformers. Python's own thresholds take a twentieth of the tests' time."""
    collect_in_large_steps()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fast_on_ray = item.get_closest_marker("ray") and not item.get_closest_marker("slow")
        if fast_on_ray and not any(item.path.is_relative_to(folder) for folder in ON_RAY):
            raise pytest.UsageError(
                f"{item.nodeid}: move it to tests/fleets or tests/jobs, or `make test` starts Ray in more processes"
            )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test draws the same weights whichever tests ran before it; its fixtures, which are made after this, too."""
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"methods were drawn by FIBEC_RAY_SAMPLE={seed()} (tests/rotation.py)")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared base weights go to a folder of this test run."""
    before = os.environ.get("FIBEC_RAY_CACHE")
    os.environ["FIBEC_RAY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["FIBEC_RAY_CACHE"]
    else:
        os.environ["FIBEC_RAY_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Files stay in the page cache, which outlives every killed process; only a power cut would tell the difference.

    The tests write some hundred thousand files, and waiting for the disk would take a fifth of their time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Of torch, as fleets have it; more of them only get in each other's way on tiny models."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for all tests that need one; fleets join it and leave it running."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=150_000_000,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_settings() -> Settings:
    """tiny_settings("fibecfed", rounds=2): plain values of a small experiment; mappings are merged into its own.

    The embedded task, six devices, and a random BERT of three blocks.
    """
    return make_tiny


def make_tiny(method: str | dict[str, Any] = "fedavg", **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "rounds": 3,
        "num_devices": 6,
        "cohort_size": 3,
        "task": named("tasks", "synthetic"),
        "method": named("methods", method) if isinstance(method, str) else method,
        "data": {"max_length": 16, "synthetic": {"num_train": 72, "num_test": 24}},
        "backbone": {"init": "random", "config": TINY_BERT, "tokenizer": "minilm"},
        "local": {"batch_size": 4, "learning_rate": 0.01},
        "evaluation": {"every": 2},
        "fleet": {"kind": "local"},
    }
    for key, value in changes.items():
        old = settings.get(key)
        settings[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return settings


SGD = {
    "optimizer": "sgd", "learning_rate": 0.1, "schedule": "constant", "weight_decay": 0, "batch_size": 8, "epochs": 2
}  # fmt: skip


def make_digits(method: str | dict[str, Any] = "fedavg", **changes: Any) -> dict[str, Any]:
    """A network from scratch on a few digits; mappings are merged into its own, but for the backbone."""
    settings = make_tiny(method, backbone=None, data=None, local=SGD)
    settings |= {"task": named("tasks", "digits"), "data": {"max_train": 120, "max_test": 40}}
    settings["backbone"] = {"kind": "cnn", "channels": [2, 3]}
    return settings | changes


def make_regression(method: str | dict[str, Any] = "fedavg", **changes: Any) -> dict[str, Any]:
    """The same for an embedded function, a region of its domain for each of six devices."""
    settings = make_digits(method, task=named("tasks", "regression"), backbone={"kind": "mlp", "hidden": [6, 5]})
    settings["data"] = {"regression": {"num_train": 120, "num_test": 40}}
    settings["partition"] = {"kind": "pathological", "classes_per_device": 1}
    return settings | changes


def make_pde(method: str | dict[str, Any] = "fedavg", **changes: Any) -> dict[str, Any]:
    """The same for the Fisher-KPP equation, a part of the interval for each of six devices."""
    settings = make_regression(method, task=named("tasks", "fisher-kpp"), backbone={"kind": "mlp", "hidden": [8]})
    settings["data"] = {"pde": {"regions": 6, "num_train": 60, "num_boundary": 2, "num_test": 40}}
    return settings | changes


def make_shapes(
    method: str | dict[str, Any] = "fedavg", config: dict[str, Any] = TINY_VIT, head: str = "model", **changes: Any
) -> dict[str, Any]:
    """A random image model on generated images; mappings are merged into its own, but for the task."""
    settings = make_tiny(method, **{"data": None, "backbone": None, **changes})
    data = {"shapes": {"num_train": 48, "num_test": 24, "size": 16}}
    backbone = {"kind": "image", "init": "random", "config": config, "head": head}
    given = {name: changes.get(name) for name in ("data", "backbone")}
    settings["data"], settings["backbone"] = given["data"] or data, given["backbone"] or backbone
    return settings | {"task": changes.get("task") or named("tasks", "shapes")}


def make_tagging(method: str | dict[str, Any] = "fedavg", **changes: Any) -> dict[str, Any]:
    """The tiny BERT that tags words of generated messages; the data are as they are here."""
    settings = make_tiny(method, **changes)
    data = {"max_length": 16, "tagging": {"num_train": 48, "num_test": 18}}
    return settings | {"task": named("tasks", "tagging"), "data": data}


def make_instructions(method: str | dict[str, Any] = "fedavg", **changes: Any) -> dict[str, Any]:
    """A random LLaMA of two blocks that answers exercises in text; the data are as they are here."""
    backbone = {"config": {**TINY_LLAMA, "num_hidden_layers": 2}, "head": "causal_lm"}
    settings = make_tiny(method, **{"rounds": 2, "backbone": backbone, **changes})
    data = {"max_length": 40, "exercises": {"num_train": 48, "num_test": 12}}
    return settings | {"task": named("tasks", "instructions"), "data": data}


def make_preferences(method: str | dict[str, Any] = "fedavg", **changes: Any) -> dict[str, Any]:
    """The same model prefers right answers to exercises over wrong ones."""
    settings = make_instructions(method, **changes)
    data = {"max_length": 24, "preferences": {"num_train": 36, "num_test": 12}}
    return settings | {"task": named("tasks", "preferences"), "data": data}


TINY_T5 = {
    "model_type": "t5",
    "vocab_size": 30522,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
}


def make_seq2seq(method: str | dict[str, Any] = "fedavg", **changes: Any) -> dict[str, Any]:
    """The same exercises with a random T5 of two and two blocks."""
    return make_instructions(method, **{"backbone": {"config": TINY_T5, "head": "seq2seq"}, **changes})


def after_rounds(
    num_rounds: int, settings: dict[str, Any], folder: Path
) -> tuple[LocalFleet, WorkerSpec, list[DeviceReport]]:
    """An open fleet after some rounds, where it works, and the reports of all devices of these rounds."""
    experiment = check(settings, "test")
    folder.mkdir(exist_ok=True)
    prepared = prepare(experiment, folder)
    worker_spec = WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())
    fleet = LocalFleet(worker_spec)
    fleet.setup()
    plans = [plan_round(worker_spec.job, round_) for round_ in range(num_rounds)]
    return fleet, worker_spec, [report for plan in plans for report in fleet.run_round(plan).reports]


def shard_of(tokens: Sequence[Sequence[int]], labels: Sequence[int] | None = None) -> ArrayShard:
    """Samples written as token ids, all of them text; the answer is at the last one. Labels are 0 if not given."""
    flat = np.array([token for sample in tokens for token in sample], dtype=np.int32)
    offsets = np.cumsum([0, *(len(sample) for sample in tokens)])
    classes = np.zeros(len(tokens), np.int64) if labels is None else np.array(labels, np.int64)
    answer_at = np.array([len(sample) - 1 for sample in tokens], dtype=np.int32)
    texts = np.ones(len(flat), np.uint8)
    return EncodedSet(flat, offsets, classes, answer_at, None, pad_id=0, texts=texts).shard(np.arange(len(tokens)))


def named(group: str, name: str) -> dict[str, Any]:
    """A packaged task or method as its file has it. Each call gives a copy of its own."""
    return deepcopy(_packaged(group, name))


@cache
def _packaged(group: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((config_folder() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def least_cohort(aggregator: Aggregator) -> int:
    """The fewest devices of a round that the aggregator goes with as it is set."""
    sizes = (Setting(size, 64, "sgd", 0.0, "float32", None) for size in range(1, 100))
    return next(
        setting.cohort_size for setting in sizes if not any(one.unfit_for(setting) for one in with_inner(aggregator))
    )


def needs(method: str) -> dict[str, Any]:
    """What a method asks of the rest of the experiment: the overrides of its file's first line, and enough devices."""
    (path,) = (path for path in method_files() if path.stem == method)
    settings: dict[str, Any] = {"cohort_size": max(3, least_cohort(load_method(path).aggregator))}
    for text in path.read_text(encoding="utf-8").splitlines()[0].split()[5:]:
        (first, *rest), value = parse_override(text)
        settings[first] = settings.get(first, {}) | {rest[0]: value} if rest else value
    return settings


BACKBONES: dict[str, dict[str, Any]] = {"encoder": {}, "decoder": {"config": TINY_LLAMA, "head": "causal_lm"}}
DOES_NOT_APPLY = {
    ("bitfit", "decoder"): "method.peft: bitfit trains biases, but LlamaForCausalLM has none; choose lora, or adapter"
}
"""Method and backbone -> the one error that says why. All others run."""
HEADED = ("fedbabu", "fedrep")
"""Methods that refuse to run where nothing is personal; with a verbaliser they need a block in place of the head."""


def settings_on(where: str, method: str, **changes: Any) -> dict[str, Any]:
    """A small experiment with a method on one of the backbones."""
    settings = make_tiny(method, backbone=BACKBONES[where], data={"max_length": 24}, **needs(method), **changes)
    if where == "decoder" and method in HEADED:
        settings["method"]["sharing"]["last_blocks"] = 1
    return settings
