"""Overrides mean what they say: kinds, defaults, settings without effect; and each piece of advice works when tried."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import load_experiment
from fibec_ray.config.names import config_folder
from fibec_ray.effects import OnlyWith, rules
from fibec_ray.errors import ConfigError, nearest
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.learning.job import LocalTraining
from fibec_ray.parts.peft.lora import Lora

QUICKSTART = config_folder() / "quickstart.yaml"
BARE = "name: bare\nrounds: 2\nnum_devices: 4\ncohort_size: 2\ntask: synthetic\n"


def quickstart(*overrides: str) -> Experiment:
    return load_experiment(QUICKSTART, overrides)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """An experiment that leaves everything to the defaults."""
    path = tmp_path / "bare.yaml"
    path.write_text(BARE)
    return path


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("method.peft.r=4", 4),
        ("partition.alpha=0.1", 0.1),
        ("partition.min_samples=2", 2),
        ("backbone.dtype=bfloat16", "bfloat16"),
        ("method.aggregator.weights=uniform", "uniform"),
        ("local.batch_size=2", 2),
        ("fleet.lanes=2", 2),
        ("checkpoint.keep=5", 5),
    ],
)
def test_a_key_below_a_default_needs_no_kind(override: str, value: Any, bare: Path) -> None:
    found: Any = load_experiment(bare, [override])
    for key in override.partition("=")[0].split("."):
        found = getattr(found, key)
    assert found == value


def test_a_key_below_a_kind_that_is_there_stays_with_it() -> None:
    method = quickstart("method=hetlora", "method.peft.r=32", "method.objective.least_rank=4").method
    assert isinstance(method.peft, Lora) and method.peft.r == 32 and method.peft.ranks == (4, 8, 16)
    assert method.objective.least_rank == 4  # type: ignore[attr-defined]


def test_a_new_kind_keeps_what_both_kinds_share_and_drops_the_rest() -> None:
    curriculum: Any = quickstart("method.curriculum.kind=random").method.curriculum
    assert (curriculum.kind, curriculum.pacing, curriculum.full_at) == ("random", "linear", 0.8)
    mask: Any = quickstart("method.mask.kind=random_neurons").method.mask
    assert (mask.kind, mask.ratio) == ("random_neurons", 0.3)


@pytest.fixture
def skewed(tmp_path: Path) -> Path:
    path = tmp_path / "skewed.yaml"
    path.write_text(
        BARE + "partition: {kind: dirichlet_label, alpha: 0.2, min_samples: 2}\n"
        "fleet: {kind: ray, placement: pooled, num_actors: 2, lanes: 2}\n"
        "local: {optimizer: sgd, momentum: 0.5}\n"
    )
    return path


def test_what_the_file_says_of_another_kind_goes(skewed: Path) -> None:
    found: Any = load_experiment(skewed, ["partition.kind=dirichlet_quantity"]).partition
    # alpha is label skew in one and size skew in the other
    assert (found.alpha, found.min_samples) == (1.0, 2)
    found = load_experiment(skewed, ["fleet.kind=local"]).fleet
    assert (found.kind, found.num_actors, found.placement, found.lanes) == ("local", None, "auto", 2)
    assert load_experiment(skewed, ["local.optimizer=adamw"]).local.momentum == 0


@pytest.mark.parametrize("swap", [False, True])
def test_what_the_same_command_line_says_never_goes(swap: bool, skewed: Path) -> None:
    pairs = {"fleet.num_actors=3": "fleet.kind=local", "local.momentum=0.9": "local.optimizer=adamw"}
    for one, other in pairs.items():
        with pytest.raises(ConfigError, match="has no effect with"):
            load_experiment(skewed, [other, one] if swap else [one, other])
    with pytest.raises(ConfigError, match="partition.alpha: no such key"):
        both = ["partition.kind=iid", "partition.alpha=1"]
        load_experiment(skewed, both[::-1] if swap else both)


def test_a_network_drops_what_is_said_of_the_transformer(bare: Path) -> None:
    changes = ["task=digits", "backbone=minilm", "backbone.kind=mlp"]
    assert load_experiment(bare, changes).backbone.model_dump()["kind"] == "mlp"


# --- settings without effect

MARKED = [(cls, name, rule) for cls in (FleetConfig, LocalTraining) for name, rule in rules(cls).items()]
CHANGED: dict[str, Any] = {
    "placement": "pooled", "num_actors": 2, "cpus_per_actor": 0.5, "classes": [{"share": 1, "num_actors": 1}],
    "address": "auto", "object_store_mb": 100, "startup_timeout_s": 10, "device_timeout_s": 10, "max_retries": 1,
    "on_lost": "drop", "auto_startup_s": 3, "momentum": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(("cls", "name", "rule"), MARKED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_setting_without_effect_is_refused(cls: Any, name: str, rule: OnlyWith) -> None:
    section = "fleet" if cls is FleetConfig else "local"
    other = {"kind": "local", "optimizer": "adamw"}[rule.field]
    override = f"{section}.{name}={CHANGED[name]}"
    with pytest.raises(ConfigError, match=rf"{section}: {name} has no effect with {rule.field}: {other}; leave it out"):
        quickstart(f"{section}.{rule.field}={other}", override)
    more = ["fleet.placement=pooled"] if name == "classes" else []
    quickstart(f"{section}.{rule.field}={rule.values[0]}", override, *more)  # the remedy


def test_a_default_that_is_written_out_is_no_setting_without_effect() -> None:
    assert quickstart("fleet.kind=local", "fleet.max_retries=3") == quickstart("fleet.kind=local")


def test_a_share_of_a_gpu_is_for_actors() -> None:
    with pytest.raises(ConfigError, match="gpus_per_actor 0.5 has no effect with kind: local"):
        quickstart("fleet.kind=local", "fleet.gpus_per_actor=0.5")
    for remedy in ("0", "null", "1"):
        quickstart("fleet.kind=local", f"fleet.gpus_per_actor={remedy}")


def test_the_device_type_is_for_both_fleets() -> None:
    for kind in ("local", "ray"):
        for device in ("auto", "cpu", "cuda"):
            assert quickstart(f"fleet.kind={kind}", f"fleet.device={device}").fleet.device == device
    assert quickstart("device=cpu").fleet.gpus == 0
    with pytest.raises(ConfigError, match=r"fleet.device is cpu; set backbone.backend=plain, or fleet.device=cuda and"):
        quickstart("fleet.device=cpu", "backbone.backend=spread")
    quickstart("fleet.device=cpu", "backbone.backend=plain")
    quickstart("fleet.device=cuda", "fleet.gpus_per_actor=2", "backbone.backend=spread")


# --- advice that works: (override, what is advised, the remedy as overrides)

ADVICE = {
    "alias below a section": ("local.lr=0.1", "did you mean 'local.learning_rate'", ["local.learning_rate=0.1"]),
    "misspelt alias": ("batch_siz=4", "did you mean 'local.batch_size'", ["local.batch_size=4"]),
    "key of a section": ("gpus_per_actor=1", "did you mean 'fleet.gpus_per_actor'", ["fleet.gpus_per_actor=1"]),
    "a count and not a fraction": ("fraction_fit=0.5", "did you mean 'cohort_size'", ["cohort_size=10"]),
    "another dtype": ("fp16=true", "did you mean 'backbone.dtype'", ["backbone.dtype=float32"]),
    "letter case": ("method=FedAvg", "did you mean 'fedavg'", ["method=fedavg"]),
    "a hyphen": ("backbone=tiny_llama", "did you mean 'tiny-llama'", ["backbone=tiny-llama"]),
    "a choice": ("local.optimizer=adam", "did you mean 'adamw'", ["local.optimizer=adamw"]),
    "a kind": ("method.aggregator=Median", "did you mean 'median'", ["method.aggregator=median"]),
    "beginning of a kind": ("partition.kind=patho", "did you mean 'pathological'", ["partition.kind=pathological"]),
    "a key of another kind": (
        "partition.classes_per_device=2",
        "kind dirichlet_label does not have it; set partition.kind to pathological",
        ["partition.kind=pathological", "partition.classes_per_device=2"],
    ),
    "a key of another kind, kind left out": (
        "method.aggregator.beta=0.5",
        "kind is missing; set it to one of: momentum, fedrpca, peptao",
        ["method.aggregator.kind=momentum", "method.aggregator.beta=0.5"],
    ),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice_works_when_it_is_followed(case: str) -> None:
    override, advised, remedy = ADVICE[case]
    with pytest.raises(ConfigError, match=re.escape(advised)):
        quickstart(override)
    quickstart(*remedy)


def test_nearest() -> None:
    names = ["local.batch_size", "fed-avg", "fedavg-ft", "mean_pool"]
    assert nearest("FedAvg", names) == "fed-avg" and nearest("MeanPool", names) == "mean_pool"
    assert nearest("mean", names) == "mean_pool" and nearest("xyzzy", names) is None
