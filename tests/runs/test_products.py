"""The products of frozen layers are found once, kept, and used again by resume, verify and replay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_regression
from runs.interrupted import interrupted

from fibec_ray.checkpoints import checkpoint
from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError, RunDirError
from fibec_ray.files.sealed import write_sealed
from fibec_ray.models import kernels, product_choice
from fibec_ray.models.products import has_onednn, of_older_runs
from fibec_ray.runs.callbacks import read_summary
from fibec_ray.runs.records import products_of, read_record
from fibec_ray.runs.replay import replay
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import simulate
from fibec_ray.runs.verify import verify

COHORT = 3


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the trial finds (`is`), how often it ran (`trials`), and which products models were built with (`built`)."""
    known: dict[str, Any] = {"is": "torch", "trials": 0, "built": []}
    speed_up = kernels.speed_up

    def kept_choice(spec: Any, rows: int, threads: int, folder: Path) -> Any:
        known["trials"] += 1
        return known["is"]

    def built(module: Any, device: Any, products: Any = "auto") -> None:
        known["built"].append(products)
        speed_up(module, device, products)

    monkeypatch.setattr(product_choice, "kept_choice", kept_choice)
    monkeypatch.setattr("fibec_ray.models.backends.speed_up", built)
    yield known


def test_a_resumed_run_keeps_its_products_without_another_trial(
    found: dict[str, Any], tiny_settings: Any, tmp_path: Path
) -> None:
    settings = tiny_settings("fibecfed", rounds=2, num_devices=3, checkpoint={"keep": "all"})
    folder = interrupted(settings, tmp_path / "run", COHORT + 1)
    assert found["trials"] == 1 and set(found["built"]) == {"torch"}
    found["is"] = "onednn"
    run = resume(folder)
    assert run is not None and found["trials"] == 1
    assert read_summary(folder)["products"] == "torch"
    assert {checkpoint.load(folder, t).manifest.products for t in checkpoint.rounds_kept(folder)} == {"torch"}
    assert verify(folder, 99, from_start=True).differences == verify(folder).differences == []
    assert replay(folder, -1, 0).differences == []
    assert found["trials"] == 1 and set(found["built"]) == {"torch"}
    again = tiny_settings("fibecfed", rounds=2, num_devices=3, fleet={"products": "torch"})
    assert simulate(check(again, "test"), tmp_path / "again").adapter_digest == run.adapter_digest


@pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")
def test_an_older_run_keeps_the_products_it_started_with(
    found: dict[str, Any], tiny_settings: Any, tmp_path: Path
) -> None:
    """Its checkpoints and its summary do not name the products, which were oneDNN's."""
    found["is"] = "onednn"
    folder = interrupted(tiny_settings("fedavg"), tmp_path / "run", COHORT + 1)
    for t in checkpoint.rounds_kept(folder):
        kept = checkpoint.load(folder, t)
        write_sealed(kept.folder / checkpoint.MANIFEST, kept.manifest.model_copy(update={"products": None}))
    summary = {name: value for name, value in read_summary(folder).items() if name != "products"}
    (folder / "summary.json").write_text(json.dumps(summary))
    found |= {"is": "torch", "trials": 0, "built": []}
    resume(folder)
    assert verify(folder).differences == []
    assert found["trials"] == 0 and set(found["built"]) == {"onednn"} == {of_older_runs()}


def test_products_of_a_run_without_checkpoints_are_read_from_its_summary(
    found: dict[str, Any], tiny_settings: Any, tmp_path: Path
) -> None:
    folder = interrupted(tiny_settings("fedavg", checkpoint={"every": 3}), tmp_path / "run", COHORT + 1)
    for t in checkpoint.rounds_kept(folder):
        checkpoint.remove(folder, t)
    assert products_of(read_record(folder)) == "torch"
    (folder / "summary.json").write_text('{"products": "abacus"}')
    assert products_of(read_record(folder)) == of_older_runs()
    (folder / "summary.json").write_text('{"device": "cuda"}')
    assert products_of(read_record(folder)) is None, "on a CPU it would have a trial"


def test_resume_rejects_other_products_than_those_of_the_run(tiny_settings: Any, tmp_path: Path) -> None:
    folder = interrupted(tiny_settings("fedavg", fleet={"products": "torch"}), tmp_path / "run", COHORT + 1)
    with pytest.raises(RunDirError, match=r"differs .*fleet.products.* and fleet.products; set it back"):
        resume(folder, ["fleet.products=auto"])


def test_products_that_do_not_suit_the_base_are_rejected(tiny_settings: Any) -> None:
    with pytest.raises(ConfigError, match="torch_float32 is for a bfloat16 base, but backbone.dtype is float32; set"):
        check(tiny_settings("fedavg", fleet={"products": "torch_float32"}), "test")
    with pytest.raises(ConfigError, match="fleet.products: torch multiplies frozen layers, but .* has none; leave it"):
        check(make_regression("fedavg", fleet={"kind": "local", "products": "torch"}), "test")
    with pytest.raises(
        ConfigError, match="no effect with backbone.backend stream, which uses PyTorch's products; leave"
    ):
        check(tiny_settings("fedavg", fleet={"products": "torch"}, backbone={"backend": "stream"}), "test")


def test_a_run_without_frozen_layers_records_no_products(
    found: dict[str, Any], tiny_settings: Any, tmp_path: Path
) -> None:
    whole = tiny_settings("fedavg", rounds=1)
    whole["method"]["peft"] = {"kind": "full"}
    streamed = tiny_settings("fedavg", rounds=1, backbone={"backend": "stream"})
    for name, settings in (("network", make_regression("fedavg", rounds=1)), ("whole", whole), ("streamed", streamed)):
        folder = simulate(check(settings, "test"), tmp_path / name).folder
        assert "products" not in read_summary(folder)
        assert verify(folder).differences == []
    assert found["trials"] == 0
