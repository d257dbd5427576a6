"""Checkpoints as files: what was written comes back bit for bit and in its order, or one error says what is wrong."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fibec_ray.checkpoints import checkpoint
from fibec_ray.checkpoints.checkpoint import CheckpointConfig, Manifest
from fibec_ray.errors import RunDirError
from fibec_ray.learning.run_totals import RunTotalsState
from fibec_ray.tensors import digest
from fibec_ray.types import StateRef

STATE = {
    "shared/b": torch.tensor([0.1, float("-0.0"), 1e-40]),
    "shared/a": torch.rand(2, 3).t(),
    "aggregator/count": torch.tensor(3),
    "control/half": torch.rand(2).bfloat16(),
}


def write(run_dir: Path, next_round: int, **changes: Any) -> Path:
    draft = checkpoint.new_draft(run_dir, next_round)
    server = checkpoint.write_state(draft / checkpoint.SERVER, {n: v.contiguous() for n, v in STATE.items()})
    totals = RunTotalsState(sim_time_s=0.1 + 0.2, wall_time_s=1.0, bytes_total=7, num_samples_total=5, trained=[2, 0])
    facts = {
        "next_round": next_round,
        "run_id": "r",
        "server": server,
        "lanes": 2,
        "totals": totals,
        "devices": {3: -1, 12: 4},
        "digests": {3: "a", 12: "b"},
        "log": {"rounds": "c"},
    }
    checkpoint.commit(run_dir, draft, Manifest(**facts | changes))
    return checkpoint.folder_of(run_dir, next_round)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, 5)
    found = checkpoint.load(tmp_path, 5)
    assert found.manifest.states == {3: StateRef(-1, "a"), 12: StateRef(4, "b")}
    assert found.manifest.log == {"rounds": "c"} and found.manifest.totals.sim_time_s == 0.1 + 0.2
    state = checkpoint.read_state(found.server)
    assert digest(state) == digest(STATE)
    assert list(state) == list(STATE)  # safetensors alone would sort them, and sums depend on the order


def test_a_checkpoint_of_an_older_program_names_versions_alone(tmp_path: Path) -> None:
    write(tmp_path, 5)
    path = checkpoint.folder_of(tmp_path, 5) / checkpoint.MANIFEST
    old = json.loads(path.read_text())
    del old["log"], old["digests"], old["digest"]
    digest_then = hashlib.blake2b(json.dumps(old, sort_keys=True).encode(), digest_size=16).hexdigest()
    path.write_text(json.dumps(old | {"digest": digest_then}))
    found = checkpoint.load(tmp_path, 5).manifest
    assert found.states == {3: StateRef(-1, ""), 12: StateRef(4, "")} and found.log == {}


def test_times_survive_bit_for_bit(tmp_path: Path) -> None:
    values = [math.pi * 10.0**power for power in range(-300, 300, 25)]
    for i, value in enumerate(values):
        totals = RunTotalsState(sim_time_s=value, wall_time_s=0, bytes_total=0, num_samples_total=0, trained=[])
        write(tmp_path, i, totals=totals)
    assert [checkpoint.load(tmp_path, i).manifest.totals.sim_time_s for i in range(len(values))] == values


def test_a_draft_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint.new_draft(tmp_path, 3)
    assert checkpoint.rounds_kept(tmp_path) == []
    write(tmp_path, 3)
    write(tmp_path, 12)
    checkpoint.new_draft(tmp_path, 12)
    assert checkpoint.rounds_kept(tmp_path) == [3, 12]
    checkpoint.remove(tmp_path, 3)
    assert checkpoint.rounds_kept(tmp_path) == [12]


def test_a_checkpoint_that_is_written_again_replaces_the_first(tmp_path: Path) -> None:
    write(tmp_path, 3, run_id="old")
    write(tmp_path, 3, run_id="new")
    assert checkpoint.load(tmp_path, 3).manifest.run_id == "new"


@pytest.mark.parametrize("name", [checkpoint.SERVER, checkpoint.MANIFEST])
@pytest.mark.parametrize("where", [0.05, 0.5, 0.95])
def test_a_changed_byte_is_found(name: str, where: float, tmp_path: Path) -> None:
    path = write(tmp_path, 5) / name
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunDirError, match="damaged"):
        checkpoint.load(tmp_path, 5)


@pytest.mark.parametrize("name", [checkpoint.SERVER, checkpoint.MANIFEST])
@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_file_that_is_cut_short_is_found(name: str, kept: int, tmp_path: Path) -> None:
    path = write(tmp_path, 5) / name
    path.write_bytes(path.read_bytes()[: kept if kept >= 0 else -3])
    with pytest.raises(RunDirError, match=f"000005.{name}: is damaged"):
        checkpoint.load(tmp_path, 5)


@pytest.mark.parametrize("name", [checkpoint.SERVER, checkpoint.MANIFEST])
def test_a_file_that_is_gone_is_named(name: str, tmp_path: Path) -> None:
    (write(tmp_path, 5) / name).unlink()
    with pytest.raises(RunDirError, match=f"000005.{name}: cannot be read"):
        checkpoint.load(tmp_path, 5)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"digest": 4}', "[" * 100_000, "\x00"])
def test_a_manifest_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (write(tmp_path, 5) / checkpoint.MANIFEST).write_text(content)
    with pytest.raises(RunDirError, match="manifest.json: is damaged"):
        checkpoint.load(tmp_path, 5)


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 5).rename(checkpoint.folder_of(tmp_path, 6))
    with pytest.raises(RunDirError, match="000006: belongs to round 5"):
        checkpoint.load(tmp_path, 6)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 5, format=99) / checkpoint.MANIFEST
    assert json.loads(path.read_text())["format"] == 99
    with pytest.raises(RunDirError, match="format 99, and this program reads format 1"):
        checkpoint.load(tmp_path, 5)


@pytest.mark.parametrize(("keep", "left"), [(1, [9]), (2, [8, 9]), (5, [3, 8, 9]), ("all", [3, 8, 9])])
def test_the_newest_stay(keep: Any, left: list[int]) -> None:
    assert CheckpointConfig(keep=keep).kept([3, 8, 9]) == left


@pytest.mark.parametrize("settings", [{"keep": 0}, {"keep": "some"}, {"every": 0}, {"evry": 1}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CheckpointConfig(**settings)
