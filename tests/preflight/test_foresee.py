"""`fibec-ray plan`, and the same refusal before a run: from a file to what it will take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_digits, make_tiny

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.errors import CapacityError
from fibec_ray.models import products
from fibec_ray.preflight import check as checks
from fibec_ray.preflight.check import foresee
from fibec_ray.preflight.disk import folder_bytes
from fibec_ray.runs.simulation import cache_dir, prepare, simulate


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 100 MB."""
    look = checks.look

    def scarce(*arguments: Any) -> Any:
        room = look(*arguments)
        return replace(room, resources=replace(room.resources, memory_bytes=10**8))

    monkeypatch.setattr(checks, "look", scarce)


@pytest.mark.parametrize("settings", [make_tiny("fibecfed"), make_digits("fedavg")], ids=["fibecfed", "digits"])
def test_a_run_takes_what_was_foreseen(settings: dict[str, Any], tmp_path: Path) -> None:
    """Bytes as the round log has them; operations, and bytes on disk, to within a quarter."""
    experiment = check(settings, "test")
    outlook = foresee(experiment, prepare, tmp_path, cache_dir())
    run = simulate(experiment, tmp_path / "run")
    last = run.rows[-1]
    assert outlook.traffic.total == last["bytes_total"]
    assert list(outlook.traffic.rounds_up) == [row["bytes_up"] for row in run.rows[1:]]
    assert list(outlook.traffic.rounds_down) == [row["bytes_down"] for row in run.rows[1:]]
    flops = outlook.work.setup_flops + sum(outlook.work.rounds_flops)
    assert flops == pytest.approx(sum(row["flops"] for row in run.rows), rel=0.25)
    assert outlook.plan.disk.run == pytest.approx(folder_bytes(run.folder), rel=0.25)
    kept = outlook.plan.disk.states + outlook.plan.disk.checkpoints
    assert kept == pytest.approx(folder_bytes(run.folder / "checkpoints"), rel=0.25)


@pytest.fixture
def tiny_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(make_tiny("fedavg")))
    return str(path)


def test_plan_prints_what_a_run_will_take(tiny_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", tiny_file, "rounds=2"]) == 0
    out, err = capsys.readouterr()
    for words in (
        "backbone.backend",
        "fleet.products",
        "the fastest here, in a short trial",
        "auto: no GPU; the base has",
        "memory in total",
        "disk, run directory",
        "sent per round",
        "operations in total",
        "time in total",
    ):
        assert words in out
    assert err == ""


def test_plan_prints_plain_values_for_scripts(tiny_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", tiny_file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["memory"]["total"] > 3e8
    assert found["plan"]["seats"]["placement"]["num_actors"] == 1
    assert found["plan"]["backend_choice"]["backend"] == "plain"
    assert found["plan"]["backend_choice"]["reason"].startswith("auto: no GPU; ")
    assert found["traffic_total"] == sum(found["traffic"]["rounds_up"]) + sum(found["traffic"]["rounds_down"])


def test_plan_says_what_multiplies_frozen_layers(
    tiny_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU without bfloat16 instructions multiplies a bfloat16 base in float32, also to measure its speed."""

    def planned(*overrides: str) -> tuple[str | None, str, float]:
        assert main(["plan", tiny_file, *overrides, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        return found["products"], found["why_products"], found["rate"]

    monkeypatch.setattr(products, "has_bfloat16", lambda: False)
    monkeypatch.setattr(checks, "product_rate", lambda name, *shape: 1e9 * len(name))
    library = "onednn" if products.has_onednn() else "torch"
    words = {"onednn": "oneDNN", "torch": "PyTorch"}[library]
    assert planned() == (library, f"{words}, in float32 (the fastest here, in a short trial)", 1e9 * len(library))
    name, why, rate = planned("backbone.dtype=bfloat16")
    assert (name, rate) == (f"{library}_float32", 1e9 * len(f"{library}_float32"))
    assert why.startswith(f"{words}, in float32: this CPU has no bfloat16 instructions; the weights stay in bfloat16")
    assert planned("fleet.products=torch")[:2] == ("torch", "PyTorch, in float32 (as configured)")
    assert planned("method.peft=full")[:2] == (None, "")


@pytest.mark.usefixtures("no_memory")
def test_plan_ends_with_what_does_not_fit(tiny_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", tiny_file]) == 2
    out, err = capsys.readouterr()
    assert "memory in total" in out
    assert err.startswith("fibec-ray: memory: ") and "0.1 GB are available; " in err and len(err.splitlines()) == 1


@pytest.mark.usefixtures("no_memory")
def test_a_run_that_cannot_fit_is_refused_before_a_fleet_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves its directory as it was, for another try."""
    monkeypatch.setattr("fibec_ray.runs.simulation.make_fleet", lambda *_: pytest.fail("a fleet was made"))
    with pytest.raises(CapacityError, match="^memory: .*0.1 GB are available"):
        simulate(check(make_tiny("fedavg"), "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
