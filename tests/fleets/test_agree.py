"""The same experiment gives the same bits wherever its devices run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import BACKBONES, DOES_NOT_APPLY, make_instructions, make_regression, settings_on
from rotation import in_turn

from fibec_ray.config.load import check
from fibec_ray.config.names import method_files
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.simulation import simulate

LOCAL = {"kind": "local"}
POOLED_1 = {"kind": "ray", "placement": "pooled", "num_actors": 1}
POOLED_2 = {"kind": "ray", "placement": "pooled", "num_actors": 2}
BOTH = LOCAL, POOLED_2
PER_DEVICE = {"kind": "ray", "placement": "per_device"}
SLOW = pytest.mark.slow


Digests = tuple[str, str, str | None]


def digests(settings: dict[str, Any], folder: Path) -> Digests:
    """Of the adapter and of the log; and how processes held the base."""
    run = simulate(check(settings, "test"), folder)
    backend = json.loads((folder / "summary.json").read_text()).get("backend")
    assert (backend is None) == ("kind" in settings["backbone"]), "a network has none"
    return run.adapter_digest, log_digest(folder), backend


@pytest.fixture(scope="module")
def reference(tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Digests:
    return digests(tiny_settings("fibecfed", num_devices=4, fleet=LOCAL), tmp_path_factory.mktemp("local") / "run")


@pytest.mark.ray
@pytest.mark.parametrize(
    "fleet",
    [pytest.param(POOLED_1, marks=SLOW), POOLED_2, pytest.param(PER_DEVICE, marks=SLOW)],
    ids=["pooled-1", "pooled-2", "per_device"],
)
def test_local_and_ray_agree_bit_for_bit(
    fleet: dict[str, Any], reference: Digests, tiny_settings: Any, tmp_path: Path, ray_cluster: None
) -> None:
    assert digests(tiny_settings("fibecfed", num_devices=4, fleet=fleet), tmp_path / "run") == reference


@pytest.mark.ray
def test_actors_use_the_products_that_the_trial_found(
    tiny_settings: Any, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial finds products that are no default, so the actors must have been given them."""
    changes: dict[str, Any] = {"num_devices": 3, "rounds": 1, "backbone": {"dtype": "bfloat16"}}
    with monkeypatch.context() as patch:
        patch.setattr("fibec_ray.models.product_choice.kept_choice", lambda *given: "torch_float32")
        found = digests(tiny_settings("fedavg", fleet={**POOLED_2, "lanes": 1}, **changes), tmp_path / "ray")
    assert json.loads((tmp_path / "ray" / "summary.json").read_text())["products"] == "torch_float32"
    set_so = {**LOCAL, "lanes": 1, "products": "torch_float32"}
    assert digests(tiny_settings("fedavg", fleet=set_so, **changes), tmp_path / "local") == found


@pytest.mark.ray
def test_an_actor_for_each_device_gives_the_same_bits(tmp_path: Path, ray_cluster: None) -> None:
    """A small network, because its actors start in half the time."""
    partition = {"kind": "pathological", "classes_per_device": 3}
    found = [
        digests(
            make_regression("fibecfed", num_devices=2, cohort_size=2, partition=partition, fleet=fleet),
            tmp_path / fleet["kind"],
        )
        for fleet in (LOCAL, PER_DEVICE)
    ]
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.ray
def test_so_do_devices_that_answer_in_text(tmp_path: Path, ray_cluster: None) -> None:
    found = [digests(make_instructions("fibecfed-fipa", fleet=fleet), tmp_path / fleet["kind"]) for fleet in BOTH]
    assert found[0] == found[1]


EVERY_DRAW = {
    "name": "every-draw",
    "curriculum": {
        "kind": "fisher",
        "label": "sampled",
        "pacing": "soft",
        "unit": "sample",
        "score_at": "first_participation",
        "rescore_every": 1,
    },
    "sharing": {"kind": "gal", "choose": "random", "score_by": "diff_norm"},
    "mask": {"kind": "random_neurons", "neuron": "rank", "redraw_every": 1},
}
"""A method that draws wherever a part of FibecFed can draw."""


@pytest.mark.ray
@pytest.mark.parametrize("fleet", [pytest.param(POOLED_1, marks=SLOW), POOLED_2], ids=["1", "2"])
def test_random_draws_and_lane_groups_do_not_depend_on_the_process(
    fleet: dict[str, Any], tiny_settings: Any, tmp_path: Path, ray_cluster: None
) -> None:
    """Five devices on lanes of two: groups of one, two and two."""
    found = [
        digests(tiny_settings(EVERY_DRAW, cohort_size=5, fleet={**each, "lanes": 2}), tmp_path / each["kind"])
        for each in (LOCAL, fleet)
    ]
    assert found[0] == found[1]


ALL = [(p.stem, where) for p in method_files() for where in BACKBONES if (p.stem, where) not in DOES_NOT_APPLY]


@pytest.mark.ray
@pytest.mark.parametrize(("method", "where"), in_turn(ALL, 1, "local equals Ray"))
def test_every_method_agrees_bit_for_bit(method: str, where: str, tmp_path: Path, ray_cluster: None) -> None:
    found = [
        digests(settings_on(where, method, num_devices=6, rounds=3, fleet=fleet), tmp_path / fleet["kind"])
        for fleet in BOTH
    ]
    assert found[0] == found[1]


def test_another_seed_gives_other_bits(reference: Digests, tiny_settings: Any, tmp_path: Path) -> None:
    adapter, log, _ = digests(tiny_settings("fibecfed", num_devices=4, seed=4, fleet=LOCAL), tmp_path / "run")
    assert adapter != reference[0] and log != reference[1]


@pytest.mark.parametrize("kind", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_fibecfed_with_nothing_held_back_is_fedavg(
    kind: str, tiny_settings: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """E13: all layers global, no mask, all data from the start."""
    everything = {
        "name": "fibecfed-degenerate",
        "curriculum": {"kind": "fisher", "initial_fraction": 1.0},
        "sharing": {"kind": "gal", "fraction": 1.0},
    }
    if kind == "ray":
        request.getfixturevalue("ray_cluster")
    fleet = POOLED_2 if kind == "ray" else LOCAL
    run = simulate(check(tiny_settings(everything, fleet=fleet), "test"), tmp_path / "degenerate")
    fedavg = simulate(check(tiny_settings("fedavg"), "test"), tmp_path / "fedavg")
    assert run.adapter_digest == fedavg.adapter_digest
    scores = [(row["global_accuracy"], row["train_loss"]) for row in run.rows[1:]]
    assert scores == [(row["global_accuracy"], row["train_loss"]) for row in fedavg.rows[1:]]
