"""Run directories with files that are not what was written: each is refused in one line, or done without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs.interrupted import interrupted

from fibec_ray.cli.main import main
from fibec_ray.roundlog.reader import log_digest

FILES = [
    "config.yaml",
    "summary.json",
    "checkpoints/run.json",
    "checkpoints/rounds/000001/manifest.json",
    "checkpoints/rounds/000001/server.safetensors",
    "checkpoints/devices/*/*.safetensors",
    "rounds/part-000000.parquet",
    "devices/init.parquet",
    "data/train/*.npy",
    "data/train_rows.npy",
    "data/train/set.json",
]


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HURT: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "a folder": _folder,
}


@pytest.fixture(scope="module")
def half(tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds that broke off in the second."""
    folder = tmp_path_factory.mktemp("half") / "run"
    return interrupted(tiny_settings("fibecfed", rounds=2, checkpoint={"keep": 1}), folder, 3 + 1)


@pytest.fixture(scope="module")
def calm(half: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The log's digest where nothing is wrong."""
    folder = Path(shutil.copytree(half, tmp_path_factory.mktemp("calm") / "run"))
    assert main(["resume", str(folder)]) == 0
    return log_digest(folder)


@pytest.mark.parametrize("how", HURT)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_run_directory(
    name: str, how: str, half: Path, calm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that resumes in spite of the damage ends with the same log."""
    folder = Path(shutil.copytree(half, tmp_path / "run"))
    paths = list(folder.glob(name))
    assert paths
    for path in paths:
        HURT[how](path)
    capsys.readouterr()
    code = main(["resume", str(folder)])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if code == 0:
        assert log_digest(folder) == calm
    else:
        assert code == 2 and said.startswith("fibec-ray: ") and said.count("\n") == 1, said
    assert not list(folder.rglob("*.part"))
