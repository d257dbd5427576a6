"""The GPU memory that the round log records, with torch's counters of a made-up machine with two GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds

from fibec_ray.errors import DeviceError
from fibec_ray.learning.gpu_memory import forget_peak, peak_gpu_memory_bytes
from fibec_ray.learning.planning import plan_round
from fibec_ray.models.backends import CONTEXT_BYTES

GB = 10**9


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes that torch has reserved on each GPU at most; [] before CUDA has started."""
    found: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(found))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", found.__getitem__)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda number: found.__setitem__(number, GB))
    yield found


def test_the_peak_is_that_of_the_fullest_gpu_with_a_context(reserved: list[int]) -> None:
    assert peak_gpu_memory_bytes() is None
    reserved[:] = [0, 0]
    assert peak_gpu_memory_bytes() is None, "CUDA has started, but nothing computes there"
    reserved[:] = [3 * GB, 5 * GB]
    assert peak_gpu_memory_bytes() == 5 * GB + CONTEXT_BYTES


def test_the_peak_is_reset_after_a_trial(reserved: list[int]) -> None:
    forget_peak()
    reserved[:] = [30 * GB]
    forget_peak()
    assert peak_gpu_memory_bytes() == GB + CONTEXT_BYTES


def test_a_device_round_reports_the_peak_of_its_process(
    tiny_settings: Any, tmp_path: Path, reserved: list[int]
) -> None:
    _, _, on_cpu = after_rounds(1, tiny_settings("fedavg"), tmp_path / "cpu")
    reserved[:] = [7 * GB]
    _, _, on_gpu = after_rounds(1, tiny_settings("fedavg"), tmp_path / "gpu")
    assert {report.peak_gpu_memory_bytes for report in on_cpu} == {None}
    assert {report.peak_gpu_memory_bytes for report in on_gpu} == {7 * GB + CONTEXT_BYTES}
    assert [report.update_digest for report in on_cpu] == [report.update_digest for report in on_gpu]


@pytest.mark.parametrize("lanes", [1, 2])
def test_out_of_memory_errors_say_what_to_lower(
    lanes: int, tiny_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, worker_spec, _ = after_rounds(0, tiny_settings("fedavg"), tmp_path)
    fleet.lanes = lanes

    def grad(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.\nmore advice")

    monkeypatch.setattr(torch.autograd, "grad", grad)
    with pytest.raises(
        DeviceError, match=r"train: the GPU's memory ran out \(CUDA .* full\); .* fewer fleet.lanes"
    ) as told:
        fleet.run_round(plan_round(worker_spec.job, 0))
    assert "\n" not in str(told.value)
