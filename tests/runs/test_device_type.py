"""Whole runs on a pretended GPU, in this process: the device type that `fleet.device` selects."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_tiny
from pretend_gpu import pretend_gpu

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError, RunDirError
from fibec_ray.runs.callbacks import read_summary
from fibec_ray.runs.simulation import simulate
from fibec_ray.runs.verify import verify


def run(folder: Path, device: str) -> Path:
    settings = make_tiny("fedavg", rounds=1, fleet={"kind": "local", "device": device, "lanes": 2})
    return simulate(check(settings, "test"), folder).folder


def test_a_local_run_uses_the_gpu_if_there_is_one(tmp_path: Path) -> None:
    with pretend_gpu():
        folder = run(tmp_path / "run", "auto")
        assert verify(folder).differences == []
    summary = read_summary(folder)
    assert summary["device"] == "cuda" and summary["lanes"] == 2 and "lanes_trial" not in summary
    assert summary["backend"] == "plain" and summary["backend_reason"].endswith("the GPU 80.0 GB free")
    with pytest.raises(RunDirError, match="this run computed on a GPU"):
        verify(folder)


def test_a_run_for_the_cpu_leaves_the_gpu_alone(tmp_path: Path) -> None:
    with pretend_gpu():
        folder = run(tmp_path / "run", "cpu")
        assert verify(folder).differences == []
    assert read_summary(folder)["device"] == "cpu"
    assert verify(folder).differences == []


def test_device_cuda_is_rejected_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^fleet\.device: cuda, but torch sees no GPU here"):
        run(tmp_path / "run", "cuda")
    assert not (tmp_path / "run").exists()
    with pretend_gpu():
        assert read_summary(run(tmp_path / "run", "cuda"))["device"] == "cuda"
