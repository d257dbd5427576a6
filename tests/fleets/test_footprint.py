"""What 100 devices cost on a small machine: memory of all processes, and seconds until the first round is trained."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
LATE = ["method.curriculum.score_at=first_participation", "method.mask.start_at=first_participation"]
METHODS = {
    "fedavg": ["method=fedavg"],
    "fibecfed": ["method=fibecfed"],
    "fibecfed, scored late": ["method=fibecfed", *LATE],
}
SETTINGS = [
    "data.synthetic.num_train=1600",
    "num_devices=100",
    "cohort_size=10",
    "rounds=2",
    "fleet.placement=pooled",
    "fleet.num_actors=2",
]


def pss_bytes(process: psutil.Process) -> int:
    """Memory of a process and its descendants; pages shared by several are counted once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_hundred_pooled_devices_fit_and_start_fast(method: str, tmp_path: Path) -> None:
    """100 devices of 16 samples. The limits are those of a machine with 2 cores that does nothing else.

    That of time is for methods without an initialisation phase: FibecFed's is arithmetic on every device's data.
    """
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fibec_ray", "run", str(QUICKSTART), "--out", str(out)]
    started = time.monotonic()
    child = subprocess.Popen([*command, *SETTINGS, *METHODS[method]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process, peak, first_round_s = psutil.Process(child.pid), 0, None
    while child.poll() is None:
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            peak = max(peak, pss_bytes(process))
        if first_round_s is None and (out / "rounds" / "part-000000.parquet").exists():
            first_round_s = time.monotonic() - started
        time.sleep(0.2)
    output = child.stdout.read().decode() if child.stdout else ""
    print(f"{method}: peak {peak / 1e9:.2f} GB, first round trained after {first_round_s} s")
    assert child.returncode == 0, output
    assert peak < 4e9
    assert first_round_s is not None and (first_round_s < 30 or method != "fedavg")
