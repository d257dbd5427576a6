"""What the page of a long run costs. The log is written by the real writer, which takes about a minute: slow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from round_logs import big_run

from fibec_ray.analysis.report import write_report

MAX_SECONDS, MAX_BYTES, MAX_PAGE = 10, 10**9, 3_000_000


def test_a_page_of_a_hundred_devices_is_small(tmp_path: Path) -> None:
    page = write_report([big_run(tmp_path, 12, 100)])
    assert page.stat().st_size < 500_000


@pytest.mark.slow
def test_a_thousand_rounds_of_a_hundred_devices(tmp_path: Path) -> None:
    """Processor seconds are judged: those of the clock are printed, and depend on what else the machine does."""
    run = big_run(tmp_path / "run", 1000, 100)
    started = time.monotonic()
    command = subprocess.Popen([sys.executable, "-m", "fibec_ray", "report", str(run)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(command.pid, 0)
    clock, processor = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    memory, size = usage.ru_maxrss * 1024, (run / "report.html").stat().st_size
    print(f"{clock:.1f} s, {processor:.1f} s of a processor, {memory / 1e6:.0f} MB; {size / 1e6:.2f} MB of HTML")
    assert status == 0 and processor < MAX_SECONDS and memory < MAX_BYTES and size < MAX_PAGE
