"""Runs that must agree on one GPU: 1 and 4 actors, lanes and no lanes, stopped and not stopped, settings on and off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check
from fibec_ray.roundlog.reader import peak_gpu_gb
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import Finished, simulate
from fibec_ray.testing.checks import Plug
from fibec_ray.testing.gpu.lines import Line
from fibec_ray.testing.gpu.place import (
    CLOSE,
    LLAMA,
    Place,
    Unavailable,
    Wrong,
    close,
    experiment,
    line,
    lines_of,
    run,
    same,
)

MINILM = {"init": "pretrained", "name": "minilm", "config": None, "tokenizer": None}
"""The packaged all-MiniLM-L6-v2."""
GENTLE = {"batch_size": 4, "learning_rate": 0.001}
"""AdamW's first step turns the sign of a gradient near 0 into a whole step, so a smaller rate leaves less rounding."""
BFLOAT16 = 0.05
"""Largest relative difference of an adapter when products are rounded to 8 bits."""


def actors(place: Place) -> Iterator[Line]:
    """FibecFed on Ray with one actor and with four on fractions of the GPU, and in this process."""
    chosen, counts = experiment("fibecfed"), (1, 2 if place.small else 4)
    found: list[Finished] = []

    def on_ray(number: int) -> str:
        share: dict[str, Any] = {"gpus_per_actor": 0.24} if place.on_gpu else {}
        fleet = {"kind": "ray", "placement": "pooled", "num_actors": number, "cpus_per_actor": 0.25, **share}
        found.append(run(place, chosen, **fleet))
        memory = peak_gpu_gb(found[-1].folder)
        if place.on_gpu and memory is None:
            raise Wrong("the round log has no peak_gpu_memory_bytes")
        text = "" if memory is None else f"; at most {memory:.2f} GB of GPU memory"
        return ("" if len(found) == 1 else same(found[-1], found[0])) + text or "finished"

    for number in counts:
        yield line(f"FibecFed on Ray, {number} actors", partial(on_ray, number))
    if found:
        yield line("in this process", lambda: same(run(place, chosen), found[0]))


def lanes(place: Place) -> Iterator[Line]:
    """MiniLM with its own weights: lanes against one device at a time, in float32 and bfloat16."""
    for dtype, limit, methods in (("float32", CLOSE, ("fedavg", "fibecfed")), ("bfloat16", BFLOAT16, ("fedavg",))):
        for method in methods:
            chosen = experiment(method, backbone=MINILM | {"dtype": dtype}, local=GENTLE)
            alone: list[Finished] = []

            def first(chosen: Experiment = chosen, alone: list[Finished] = alone) -> str:
                alone.append(run(place, chosen))
                return same(run(place, chosen), alone[0])

            def together(
                number: Any, limit: float = limit, chosen: Experiment = chosen, alone: list[Finished] = alone
            ) -> str:
                return close(run(place, chosen, lanes=number), alone[0], limit)

            yield line(f"{method}, {dtype}, twice", first)
            if alone:
                for number in (5, "auto"):
                    yield line(f"{method}, {dtype}, {number} lanes", partial(together, number))
            if place.small:
                return


def resumed(place: Place) -> Iterator[Line]:
    """A run that is stopped in its second round and resumed."""
    chosen = experiment("fibecfed")
    fleet = {"kind": "local", "device": place.device, "lanes": 1}
    here = check(chosen.model_dump(mode="json") | {"fleet": fleet}, "the GPU check")

    def work() -> str:
        folder = place.folder / "stopped"
        with suppress(ConnectionError):
            simulate(here, folder, Plug(here.cohort_size + 1))
        found = resume(folder)
        if found is None:
            raise Wrong("the run did not stop")
        return same(found, simulate(here, place.folder / "whole"))

    yield line("FibecFed, stopped in round 2 and resumed", work)


def settings(place: Place) -> Iterator[Line]:
    """Settings that change the arithmetic on a GPU, on and off."""

    def backbone(name: str, values: tuple[Any, Any], dtype: str, limit: float) -> str:
        if name == "tf32" and not place.on_gpu:
            raise Unavailable("needs a GPU")
        wanted, found = (
            run(place, experiment(backbone=MINILM | {"dtype": dtype, name: value}, local=GENTLE)) for value in values
        )
        return close(found, wanted, limit)

    def recomputed() -> str:
        llama: dict[str, Any] = {"config": LLAMA, "head": "causal_lm"}
        found, wanted = (run(place, experiment(backbone=llama | {"checkpointing": on})) for on in (True, False))
        return close(found, wanted)

    yield from lines_of(
        (
            "backbone.adapter_dtype: base against float32",
            partial(backbone, "adapter_dtype", ("float32", "base"), "bfloat16", BFLOAT16),
        ),
        ("backbone.tf32 on against off", partial(backbone, "tf32", (False, True), "float32", BFLOAT16)),
        ("backbone.checkpointing on against off", recomputed),
    )
