"""Backends against `plain`, caps on GPU memory, and a model with the shape of LLaMA-7B."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from fibec_ray.config.experiment import Experiment
from fibec_ray.fleets.gpus import memory_fraction
from fibec_ray.roundlog.reader import peak_gpu_gb
from fibec_ray.runs.simulation import Finished
from fibec_ray.testing.gpu.lines import Line
from fibec_ray.testing.gpu.place import (
    LLAMA,
    Place,
    Unavailable,
    Wrong,
    close,
    experiment,
    line,
    run,
    same,
)

MIDDLE = {
    "model_type": "llama", "vocab_size": 30522, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 8,
}  # fmt: skip
SEVEN = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 32,
}  # fmt: skip
"""LLaMA-7B with 2 of its 32 blocks: 0.67 G parameters."""
LIMITS: dict[str, float | None] = {"stream": None, "spread": None, "deepspeed": 0.05, "qlora": 0.5}
"""Largest relative difference of an adapter from that of `plain`; None: the same bits."""


def backends(place: Place) -> Iterator[Line]:
    """Each backend against `plain`, on a small LLaMA in bfloat16."""
    chosen = _decoder(LLAMA if place.small else MIDDLE)
    yield from _against_plain(place, chosen, tuple(LIMITS))


def seven_billion(place: Place) -> Iterator[Line]:
    """The shape of LLaMA-7B with two blocks: `plain`, then `stream`, with time and memory."""
    yield from _against_plain(place, _decoder(LLAMA if place.small else SEVEN), ("stream",))


def caps(place: Place) -> Iterator[Line]:
    """A process with a fraction of the GPU cannot allocate more than its share."""
    yield line("a tenth of the GPU", partial(_capped, place, 0.1))


def _decoder(config: dict[str, Any]) -> Experiment:
    backbone = {"config": config, "head": "causal_lm", "dtype": "bfloat16"}
    return experiment(backbone=backbone, rounds=1, num_devices=4, cohort_size=2, evaluation={"every": 1})


def _against_plain(place: Place, chosen: Experiment, names: tuple[str, ...]) -> Iterator[Line]:
    plain: list[Finished] = []

    def work(name: str) -> str:
        _require(place, name)
        started = time.perf_counter()
        backbone = {**chosen.backbone.model_dump(mode="json"), "backend": name}
        extra = {"gpus_per_actor": 2} if name == "spread" else {}
        settings = chosen.model_copy(update={"backbone": type(chosen.backbone).model_validate(backbone)})
        found = run(place, settings, **extra)
        seconds, memory = time.perf_counter() - started, peak_gpu_gb(found.folder)
        text = f"{seconds:.1f} s" + ("" if memory is None else f", at most {memory:.2f} GB of GPU memory")
        if name == "plain":
            plain.append(found)
            return text
        limit = LIMITS[name]
        return f"{same(found, plain[0]) if limit is None else close(found, plain[0], limit)}; {text}"

    yield line("plain", partial(work, "plain"))
    if plain:
        for name in names:
            yield line(name, partial(work, name))


def _require(place: Place, backend: str) -> None:
    """Raise Unavailable if a backend cannot run here."""
    if backend == "deepspeed" and find_spec("deepspeed") is None:
        raise Unavailable("deepspeed is not installed")
    if backend == "qlora" and (not place.on_gpu or find_spec("bitsandbytes") is None):
        raise Unavailable("needs a GPU and bitsandbytes")
    if backend == "spread" and (not place.on_gpu or torch.cuda.device_count() < 2):
        raise Unavailable("needs two GPUs")


def _capped(place: Place, share: float) -> str:
    if not place.on_gpu:
        raise Unavailable("needs a GPU")
    total = torch.cuda.get_device_properties(0).total_memory
    fraction = memory_fraction(share, total)
    torch.cuda.set_per_process_memory_fraction(fraction, 0)
    within = torch.empty(int(0.8 * fraction * total), dtype=torch.uint8, device="cuda")
    del within
    torch.cuda.empty_cache()
    try:
        torch.empty(int(1.2 * fraction * total), dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        return f"{0.8 * fraction * total / 1e9:.2f} GB could be allocated, {1.2 * fraction * total / 1e9:.2f} GB not"
    raise Wrong(f"{1.2 * fraction * total / 1e9:.2f} GB could be allocated with a share of {share} of the GPU")
