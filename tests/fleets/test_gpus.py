"""GPUs of made-up machines: as nvidia-smi lists them, as CUDA_VISIBLE_DEVICES shows them, and what processes use."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from conftest import classes, make_tiny

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.fleets import gpus
from fibec_ray.fleets.gpus import Gpu, memory_fraction, parse, select, smallest, torch_device, unusable, visible
from fibec_ray.fleets.placement import decide
from fibec_ray.fleets.ray.actors import DeviceActor
from fibec_ray.fleets.ray.cluster import foreseen
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.models.backends import room_on

TWO = "0, GPU-11111111-aaaa, 81000\n1, GPU-22222222-bbbb, 40000\n"
MIB = 2**20


def test_free_memory_of_each_gpu() -> None:
    assert [gpu.free for gpu in parse(TWO)] == [81000 * MIB, 40000 * MIB]
    assert smallest(parse(TWO)) == 40000 * MIB and smallest([]) is None


@pytest.mark.parametrize(
    "cell", ["[N/A]", "[Not Supported]", "[Insufficient Permissions]", "", "N/A", "12.5 MiB", "-1", "²"]
)
def test_memory_that_the_driver_does_not_tell_is_unknown(cell: str) -> None:
    for listing in (f"0, GPU-1, {cell}\n", f"0, {cell}"):
        (gpu,) = parse(listing)
        assert gpu.free is None
    assert smallest(parse(TWO + f"2, GPU-3, {cell}")) is None


@pytest.mark.parametrize(
    "listing",
    [
        "No devices were found\n",
        "",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that it is running.",
        "Échec, le pilote, 0\n",
        "\x00\x1b[31m,,,\n,",
        "index, uuid, memory.free [MiB]",
    ],
)
def test_what_describes_no_gpu_is_none(listing: str) -> None:
    assert parse(listing) == []


@pytest.mark.parametrize(
    ("devices", "indices"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        (" 1 , 0 ", ["1", "0"]),
        ("GPU-2222", ["1"]),
        ("GPU-11111111-aaaa,GPU-2", ["0", "1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,1", ["0"]),
        ("1,7,0", ["1"]),
        ("GPU-3", []),
        ("0,0", []),
        ("GPU-1,0", []),
    ],
)
def test_gpus_that_cuda_shows(devices: str | None, indices: list[str]) -> None:
    assert [gpu.index for gpu in select(parse(TWO), devices)] == indices


def test_a_partition_of_a_gpu_has_memory_that_is_not_known() -> None:
    (found,) = select(parse(TWO), "MIG-5f8d")
    assert found.free is None and select([], "MIG-5f8d") == []


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 0, GPU-1, 100", [Gpu("0", "GPU-1", 100 * MIB)]),
        ("echo 0, [N/A]", [Gpu("0", "[N/A]", None)]),
        ("echo 0, GPU-1, 100; exit 1", []),
        ("printf '\\377\\376 junk'", []),
        ("sleep 5", []),
    ],
)
def test_the_tool_itself(script: str, found: list[Gpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(gpus, "TIMEOUT_S", 0.3 if "sleep" in script else 10)
    assert visible({}) == found


def test_where_a_process_computes() -> None:
    assert [torch_device(share, True) for share in (None, 0, 0.5, 1, 2)] == [
        "cuda:0",
        "cpu",
        "cuda:0",
        "cuda:0",
        "cuda:0",
    ]
    assert torch_device(None, False) == torch_device(0, False) == "cpu"
    with pytest.raises(ConfigError, match=r"^fleet.gpus_per_actor: 1, but torch sees no GPU here; set it to 0"):
        torch_device(1, False)


def test_a_share_of_a_gpu_has_to_hold_a_context() -> None:
    """CUDA takes 0.545 GB of each process's share; a quarter of 24 GB leaves 5.455."""
    assert memory_fraction(0.25, 24 * 10**9) * 24 == pytest.approx(5.455)
    with pytest.raises(ConfigError, match=r"0.01 of a GPU with 24.0 GB are 0.24 GB, and CUDA alone takes 0.5.* set fl"):
        memory_fraction(0.01, 24 * 10**9)


def test_device_cuda_is_rejected_without_a_gpu() -> None:
    assert torch_device(None, True, "cuda") == "cuda:0" and torch_device(0.0, False, "cpu") == "cpu"
    with pytest.raises(ConfigError, match=r"^fleet.device: cuda, but torch sees no GPU here; set it to auto or cpu"):
        torch_device(None, False, "cuda")


def test_a_gpu_that_torch_cannot_use_is_ignored_unless_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert unusable(FleetConfig()) and unusable(FleetConfig(kind="local"))
    assert not unusable(FleetConfig(device="cuda")) and not unusable(FleetConfig(gpus_per_actor=1))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    assert not unusable(FleetConfig())


def test_an_actor_cannot_allocate_more_than_its_share_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch enforces it; a quarter of 24 GB is 6 GB, less CUDA's context. An actor with a whole GPU has no cap."""
    caps: list[tuple[float, str]] = []
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda at: SimpleNamespace(total_memory=24 * 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *cap: caps.append(cap))
    spec = WorkerSpec(check(make_tiny(), "test").job(classes(2)), tmp_path, tmp_path)
    assert DeviceActor(spec, "pool-0", 0.25)._torch_device() == "cuda:0"
    assert caps == [(pytest.approx((6 - 0.545) / 24), "cuda:0")]
    assert DeviceActor(spec, "pool-1", 1.0)._torch_device() == "cuda:0" and len(caps) == 1
    with pytest.raises(ConfigError, match=r"^fleet.gpus_per_actor: 0.01 of a GPU with 24.0 GB are 0.24 GB, and CUDA"):
        DeviceActor(spec, "pool-2", 0.01)._torch_device()


def test_room_for_a_base_respects_the_cap_and_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 20 of 24 GB free, a cap of a quarter leaves 6 GB. With 2 GB free there are 2 GB."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (20 * 10**9, 24 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda number: 0.25)
    assert room_on(torch.device("cuda:0"), beside=10**9).first == 5 * 10**9
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (2 * 10**9, 24 * 10**9))
    assert room_on(torch.device("cuda:0"), beside=10**9).first == 10**9
    assert room_on(torch.device("cpu")).gpu is None


def test_a_local_cluster_counts_no_gpus_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi lists a GPU, but torch is built for CPUs: `auto` uses CPUs, `cuda` counts the GPU and fails later."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 0, GPU-1, 100\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    small = {"object_store_mb": 80}
    found = [foreseen(FleetConfig(**small, device=device)).gpus for device in ("auto", "cpu", "cuda")]
    assert found == [0, 1, 1]
    assert decide(FleetConfig(device="cpu"), 4, foreseen(FleetConfig(**small, device="cpu"))).device == "cpu"
