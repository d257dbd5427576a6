"""Whatever is malformed ends with exit code 2 and one line that says where, and leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile_configs import ALL, Case

from fibec_ray.cli import main

CONFIGS = [(kind, case) for kind, make in ALL.items() for case in make()]
LONGEST_S = 20


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command line has to say."""
    started = time.monotonic()
    code = main(arguments)
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith("fibec-ray: ") and said.count("\n") == 1 and len(said) < 3000, said[:300]
    assert "Traceback" not in said and said.rstrip("\n").isprintable()
    assert time.monotonic() - started < LONGEST_S
    return said


@pytest.mark.parametrize(("kind", "case"), CONFIGS, ids=[f"{kind}: {case[0]}" for kind, case in CONFIGS])
def test_a_malformed_experiment(
    kind: str, case: Case, tiny_settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, (_, what) = tmp_path / "experiment.yaml", case
    config.write_bytes(what if isinstance(what, bytes) else yaml.safe_dump(tiny_settings()).encode())
    overrides = [] if isinstance(what, bytes) else what
    refused(["run", str(config), *overrides, "--out", str(tmp_path / "run")], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.yaml"]


@pytest.mark.parametrize("kind", ["missing", "folder", "broken link", "long name", "null byte"])
def test_a_path_that_is_no_file(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken link").symlink_to(tmp_path / "nowhere")
    name = {"long name": "x" * 1000, "null byte": "a\0b"}.get(kind, kind)
    refused(["run", str(tmp_path / name), "--out", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()
