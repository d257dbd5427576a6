"""Whole runs of eight devices, however the base is held: initialisation, two rounds, evaluation, the saved adapter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_LLAMA, make_instructions, make_tiny, named
from models.rounds import ran

RUNS = Path(__file__).with_name("rounds.py")
LLAMA = {"config": TINY_LLAMA, "head": "causal_lm", "dtype": "bfloat16"}
METHODS = ("fibecfed", "fipa", "fedavg-in-words")
"""The last one on a task that is answered in text; the others choose a class."""
BACKENDS = ("plain", "stream", "deepspeed")


def settings(method: str, backend: str) -> dict[str, Any]:
    name, _, in_words = method.partition("-in-")
    chosen = named("methods", name)
    if method == "fibecfed":
        chosen["sharing"] |= {"relative": True, "max_samples": 4}  # as a bfloat16 base needs it
    make = make_instructions if in_words else make_tiny
    return make(
        chosen,
        backbone=LLAMA | {"backend": backend},
        rounds=2,
        num_devices=8,
        cohort_size=8,
        data=None if in_words else {"max_length": 24, "synthetic": {"num_train": 64, "num_test": 16}},
        fleet={"kind": "local", "lanes": 1},
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each backend's runs come to: the others' in processes of their own, side by side, plain's in this one."""
    folder = tmp_path_factory.mktemp("backends")
    started = {}
    for backend in BACKENDS[1:]:
        files = [folder / f"{backend}-{method}.yaml" for method in METHODS]
        for file, method in zip(files, METHODS, strict=True):
            file.write_text(yaml.safe_dump(settings(method, backend)))
        command = [sys.executable, str(RUNS), str(folder), *map(str, files)]
        started[backend] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = {"plain": {"runs": ran(folder, {f"plain-{method}": settings(method, "plain") for method in METHODS})}}
    for backend, process in started.items():
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        said[backend] = json.loads(out.splitlines()[-1])
    return said


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["stream", "deepspeed"])
def test_a_run_comes_to_the_adapter_of_plain_bit_by_bit(backend: str, method: str, found: dict[str, Any]) -> None:
    """A LLaMA of three blocks in bfloat16, where all of them use PyTorch's products."""
    ours, plain = found[backend]["runs"][f"{backend}-{method}"], found["plain"]["runs"][f"plain-{method}"]
    assert (ours["backend"], plain["backend"]) == (backend, "plain")
    assert ours["digest"] == plain["digest"]


def test_methods_come_to_different_adapters(found: dict[str, Any]) -> None:
    """Or the comparison says nothing."""
    assert len({run["digest"] for run in found["plain"]["runs"].values()}) == len(METHODS)


def test_no_shared_memory_is_used_or_left_behind(found: dict[str, Any]) -> None:
    assert all(not found[backend]["shared_memory"] for backend in BACKENDS[1:])
    assert not list(Path("/dev/shm").glob("*deepspeed*"))
