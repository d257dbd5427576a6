"""The page's scripts run in a real browser and draw every card; skipped where there is no Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from round_logs import big_run, small_run

from fibec_ray.analysis.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


def drawn(page: Path, profile: Path) -> str:
    """The page's elements after its scripts have run, without a network."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    nowhere = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"]
    command = [str(BROWSER), *options, *nowhere, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_every_card_of_a_run_is_drawn(tmp_path: Path) -> None:
    page = drawn(write_report([big_run(tmp_path / "run", 5, 6)]), tmp_path / "profile")
    cards = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    assert len(cards) > 10
    for card in cards:
        assert "<canvas" in card or re.search(r"<(path|rect|circle) class=", card), card[:300]
        assert "NaN" not in card and "undefined" not in card


def test_of_several_runs_one_is_shown(tmp_path: Path) -> None:
    runs = [small_run(tmp_path / name, {0: 0.2, 3: 0.5}, method=name) for name in ("a", "b")]
    page = drawn(write_report(runs, tmp_path / "page.html"), tmp_path / "profile")
    assert len(re.findall(r'<section class="run" id="run-\d+">', page)) == 1
    assert len(re.findall(r'<section class="run" id="run-\d+" hidden="">', page)) == 1
