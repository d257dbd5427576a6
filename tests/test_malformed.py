"""Whatever is malformed ends with exit code 2 and one line that says where, and leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import hostile_data
import pytest
import yaml
from conftest import TINY_LLAMA, named
from hostile_configs import ALL, Case

from fibec_ray.cli.main import main

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


def with_data(tiny_settings: Any, folder: Path) -> Path:
    """An experiment on the files of a folder, whose test rows are in order."""
    data = {"path": str(folder / "data"), "max_length": 16}
    settings = tiny_settings() | {"task": named("tasks", "sst2"), "data": data}
    (folder / "data").mkdir()
    config = folder / "experiment.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


@pytest.mark.parametrize("name", hostile_data.ALL)
def test_a_malformed_data_set(
    name: str, tiny_settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, (suffix, content) = with_data(tiny_settings, tmp_path), hostile_data.ALL[name]
    (tmp_path / "data" / f"train.{suffix}").write_bytes(content)
    (tmp_path / "data" / "validation.parquet").write_bytes(hostile_data.parquet(hostile_data.GOOD))
    said = refused(["run", str(config), "--out", str(tmp_path / "run")], capsys)
    assert "train" in said or "data" in said or "device" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", hostile_data.INSTRUCTIONS)
def test_malformed_instructions(
    name: str, tiny_settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, says = hostile_data.INSTRUCTIONS[name]
    config, file = tmp_path / "experiment.yaml", tmp_path / "mine.jsonl"
    file.write_bytes(content)
    backbone = {"init": "random", "config": TINY_LLAMA, "tokenizer": "minilm", "head": "causal_lm"}
    settings = tiny_settings() | {"task": named("tasks", "dolly"), "backbone": backbone}
    config.write_text(yaml.safe_dump(settings | {"data": {"path": str(file), "max_length": 64}}))
    assert says in refused(["run", str(config), "--out", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()


def test_the_same_data_set_in_order_is_not_refused(
    tiny_settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a refusal, into the same folder: the first try has left nothing in the way."""
    config = with_data(tiny_settings, tmp_path)
    run = ["run", str(config), "rounds=1", "partition=iid", "--out", str(tmp_path / "run")]
    refused(run, capsys)
    for split in ("train", "validation"):
        (tmp_path / "data" / f"{split}.parquet").write_bytes(hostile_data.parquet(hostile_data.GOOD))
    assert main(run) == 0


def test_what_is_found_out_after_the_start_leaves_nothing_either(
    tiny_settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data are written by then, and the model is built."""
    config = tmp_path / "experiment.yaml"
    config.write_text(yaml.safe_dump(tiny_settings({"name": "x", "peft": {"kind": "lora", "target_modules": ["no"]}})))
    refused(["run", str(config), "--out", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()
