"""What the page of a long run costs. The log is written by the real writer, which takes about a minute: slow."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from round_logs import big_run

from analysis.report import write_report

MAX_SECONDS, MAX_BYTES, MAX_PAGE = 10, 10**9, 3_000_000


def test_a_page_of_a_hundred_devices_is_small(tmp_path: Path) -> None:
    page = write_report([big_run(tmp_path, 12, 100)])
    assert page.stat().st_size < 500_000


@pytest.mark.slow
def test_a_thousand_rounds_of_a_hundred_devices(tmp_path: Path) -> None:
    run = big_run(tmp_path / "run", 1000, 100)
    started = time.monotonic()
    command = [sys.executable, "-m", "fibec_ray.cli", "report", str(run)]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - started
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{seconds:.1f} s, {memory / 1e6:.0f} MB, {(run / 'report.html').stat().st_size / 1e6:.2f} MB of HTML")
    assert seconds < MAX_SECONDS and memory < MAX_BYTES
    assert (run / "report.html").stat().st_size < MAX_PAGE
