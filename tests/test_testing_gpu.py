"""`python -m fibec_ray.testing.gpu`: all of it on a GPU, and the check itself with the CPU in the GPU's place."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pretend_gpu import pretend_gpu

from fibec_ray.errors import ConfigError
from fibec_ray.models.process_state import restored
from fibec_ray.roundlog.reader import peak_gpu_gb
from fibec_ray.testing.gpu import place as small_runs
from fibec_ray.testing.gpu.__main__ import NAMES, TABLES, main
from fibec_ray.testing.gpu.child import in_child, measured
from fibec_ray.testing.gpu.lines import Findings, Line, Section
from fibec_ray.testing.gpu.methods import KINDS, every_method
from fibec_ray.testing.gpu.place import Place, Unavailable, Wrong, apart, line
from fibec_ray.testing.gpu.steps import STEPS


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    with restored():
        yield


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_the_engine_on_this_machines_gpu(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "gpu-check.json")]) == 0, (tmp_path / "gpu-check.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "torch sees no GPU here" in capsys.readouterr().err


def test_the_steps_that_can_be_named_are_those_that_run() -> None:
    assert tuple(STEPS) == NAMES
    assert all(step.summary for step in STEPS.values())
    assert sum(step.limit_s for step in STEPS.values()) < 11 * 60  # far less is needed where nothing hangs


def test_methods_are_compared_with_the_cpu(tmp_path: Path) -> None:
    found = list(every_method(Place("cpu", True, tmp_path, ("fedavg",))))
    assert [one.verdict for one in found] == ["ok", "ok"]
    assert found[0].text == "relative difference 0.0e+00"


def test_runs_on_a_gpu_record_its_memory(tmp_path: Path) -> None:
    with pretend_gpu() as gpu:
        found = small_runs.run(Place("cuda", True, tmp_path), small_runs.experiment())
    assert gpu.num_operations > 200 and (peak_gpu_gb(found.folder) or 0) > 0.5
    on_cpu = small_runs.run(Place("cpu", True, tmp_path), small_runs.experiment())
    assert peak_gpu_gb(on_cpu.folder) is None


def test_kinds_of_models_are_experiments() -> None:
    for make in KINDS.values():
        make()


def test_a_difference_is_found() -> None:
    ones = {"a": torch.ones(4)}
    assert apart({"a": torch.full((4,), 1.5)}, ones) == 0.5
    with pytest.raises(Wrong, match="not finite"):
        apart({"a": torch.full((4,), float("nan"))}, ones)
    with pytest.raises(Wrong, match="other tensors"):
        apart({"b": torch.ones(4)}, ones)


def raise_(error: Exception) -> str:
    raise error


def test_a_line_has_the_verdict_of_a_check() -> None:
    assert line("a", lambda: "fine") == Line("a", "ok", "fine")
    assert line("a", lambda: raise_(Unavailable("no GPU"))) == Line("a", "skipped", "no GPU")
    for error in (Wrong("too far"), ConfigError("too far"), ValueError("too far")):
        failed = line("a", lambda error=error: raise_(error))  # type: ignore[misc]
        assert failed.verdict == "FAILED" and "too far" in failed.text


def test_a_step_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    section = in_child("product", "cpu", True, tmp_path / "product", (), 100)
    assert section.verdict == "ok" and [one.what for one in section.lines] == ["float32", "bfloat16"]


def test_a_step_that_crashes_or_hangs_has_failed(tmp_path: Path) -> None:
    assert in_child("no such step", "cpu", True, tmp_path / "a", (), 100).verdict == "FAILED"
    slow = measured("slow", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "b", 0.2)
    assert slow.verdict == "FAILED" and slow.note == "stopped after 0 s"


def test_a_step_without_time_has_failed(tmp_path: Path) -> None:
    for section in (in_child("product", "cpu", True, tmp_path / "a", (), 0), measured("t", ["x"], tmp_path / "b", -1)):
        assert section.verdict == "FAILED" and section.note == "not started, since no time was left"


def test_a_table_is_read_from_a_commands_output(tmp_path: Path) -> None:
    section = measured("speed", [sys.executable, "-c", "print('date'); print('| a |')"], tmp_path / "a", 60)
    assert (section.verdict, section.table) == ("ok", "| a |")


def test_results_are_written_after_every_step(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "found.json", {"device": "cpu"})
    findings.add(Section("first", 1.0, [Line("a", "ok", "fine"), Line("b", "FAILED", "too far")]))
    findings.add(Section("second", 1.0, [Line("a", "skipped", "no GPU")]))
    steps = json.loads((tmp_path / "found.json").read_text())["steps"]
    assert [step["verdict"] for step in steps] == ["FAILED", "skipped"] and findings.failed == ["first"]
    assert "| b | FAILED | too far |" in (tmp_path / "found.md").read_text()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_all_steps_can_be_tried_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu-check.json"
    assert main(["--device", "cpu", "--small", "--out", str(out)]) == 0, out.read_text()
    assert small_runs.CLOSE == 1e-4
    assert [step["name"] for step in json.loads(out.read_text())["steps"]] == [*NAMES, *TABLES]
