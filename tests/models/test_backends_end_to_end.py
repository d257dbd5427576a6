"""Whole runs of eight devices, however the base is held: initialisation, two rounds, evaluation, the saved adapter."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_LLAMA, make_instructions, make_tiny, named
from models.rounds import ran, report

LLAMA = {"config": TINY_LLAMA, "head": "causal_lm", "dtype": "bfloat16"}
METHODS = ("fibecfed", "fipa", "fedavg-in-words", "fibecfed-in-lanes")
"""in-words: a task with answers in text; the others choose a class. in-lanes: four devices per pass and recomputed
blocks, like the experiments with LLaMA-7B on a small GPU.
"""


def settings(method: str, backend: str) -> dict[str, Any]:
    name, _, how = method.partition("-in-")
    in_words, in_lanes = how == "words", how == "lanes"
    chosen = named("methods", name)
    if name == "fibecfed":
        chosen["sharing"] |= {"relative": True, "max_samples": 4}  # as a bfloat16 base needs it
    make = make_instructions if in_words else make_tiny
    return make(
        chosen,
        backbone=LLAMA | {"backend": backend, "checkpointing": in_lanes},
        rounds=2,
        num_devices=8,
        cohort_size=8,
        data=None if in_words else {"max_length": 24, "synthetic": {"num_train": 64, "num_test": 16}},
        fleet={"kind": "local", "lanes": 4 if in_lanes else 1} | ({"products": "torch"} if backend == "plain" else {}),
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of each backend's runs. DeepSpeed, which changes its process, has one of its own: a fork where that
    works, because the libraries take seconds to import."""
    folder = tmp_path_factory.mktemp("backends")
    runs = {
        backend: {f"{backend}-{method}": settings(method, backend) for method in METHODS}
        for backend in ("plain", "stream", "deepspeed")
    }
    own = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")  # a fork cannot use CUDA
    receiver, sender = own.Pipe(duplex=False)
    process = own.Process(target=report, args=(folder, runs.pop("deepspeed"), sender))
    process.start()
    sender.close()  # so that a fork that fails is noticed at once
    said: dict[str, Any] = {backend: {"runs": ran(folder, of_backend)} for backend, of_backend in runs.items()}
    said["deepspeed"] = receiver.recv()
    process.join(timeout=60)
    assert process.exitcode == 0
    return said


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["stream", "deepspeed"])
def test_a_run_comes_to_the_adapter_of_plain_bit_by_bit(backend: str, method: str, found: dict[str, Any]) -> None:
    """A LLaMA of three blocks in bfloat16. All of them use PyTorch's products, also on CPUs without bfloat16."""
    ours, plain = found[backend]["runs"][f"{backend}-{method}"], found["plain"]["runs"][f"plain-{method}"]
    assert (ours["backend"], plain["backend"]) == (backend, "plain")
    assert ours["digest"] == plain["digest"]


def test_methods_come_to_different_adapters(found: dict[str, Any]) -> None:
    """Otherwise the comparison would pass without a check. In lanes and alone, a method may have the same bits."""
    digests = {found["plain"]["runs"][f"plain-{method}"]["digest"] for method in METHODS if "lanes" not in method}
    assert len(digests) == 3


def test_no_shared_memory_is_used_or_left_behind(found: dict[str, Any]) -> None:
    assert not found["deepspeed"]["shared_memory"]
    assert not list(Path("/dev/shm").glob("*deepspeed*"))
