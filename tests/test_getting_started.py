"""docs/getting-started.md, block by block: from an empty folder, with the built wheel, away from the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pages import ROOT

PAGE = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
STEPS = re.findall(r"(?<!<!-- not run -->\n)^```(sh|python)\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install --no-deps` of the wheel leaves: the package, and `fibec-ray` in bin/."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    (folder / "bin").mkdir()
    command = folder / "bin" / "fibec-ray"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m fibec_ray "$@"\n')
    command.chmod(0o755)
    return folder


@pytest.mark.timeout(1200)
def test_the_page_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(installed / "site"),
        "PYTHONSAFEPATH": "1",
        "PATH": f"{installed / 'bin'}:{os.environ['PATH']}",
    }
    place, printed = tmp_path, {}
    for language, code in STEPS:
        program = ["bash", "-e", "-c", f"{code}\npwd"] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(program, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        if language == "sh":
            place = Path(done.stdout.splitlines()[-1])
        printed[code] = done.stdout
    assert place == tmp_path / "demo"
    assert {path.parent.name for path in (place / "runs").glob("*/report.html")} == {"first", "mine"}
    assert {path.parent.name for path in (place / "runs").glob("*/adapter")} >= {"first", "mine"}
    label = printed[STEPS[-1][1]].strip()
    assert label in {"delivery", "payment", "account"}
    assert any("predict" in code and label in out for code, out in printed.items() if "fibec-ray" in code)
