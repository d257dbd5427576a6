"""Every method, and every kind of model: the GPU against the CPU, one device at a time and in lanes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.names import method_files
from fibec_ray.config.reading import parse_override
from fibec_ray.errors import ConfigError
from fibec_ray.testing.gpu.lines import Line
from fibec_ray.testing.gpu.place import CLOSE, LLAMA, T5, VIT, Place, Unavailable, close, experiment, line, run

LANES = 3
AMPLIFIES = {"fipa-paper": 1e-2}
"""The largest relative difference of methods whose server divides by curvature near 0, which magnifies rounding."""
MOST_PROCESSES = 4
SOME = ("fedavg", "fibecfed")
"""The methods of a small check."""


def every_method(place: Place) -> Iterator[Line]:
    """Each method of `fibec-ray methods` on a tiny BERT, two rounds."""
    known = [path.stem for path in method_files()]
    chosen = place.only or (SOME if place.small else tuple(known))
    processes = max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2, len(chosen) // 3))
    yield from _in_parallel(partial(_method, place), chosen, processes)


def every_model(place: Place) -> Iterator[Line]:
    """Each kind of model and task, with one or two methods."""
    for what, make in KINDS.items():
        yield from _against_cpu(place, what, make, CLOSE)
        if place.small:
            return


def _in_parallel(work: Callable[[str], list[Line]], names: Sequence[str], processes: int) -> Iterator[Line]:
    if processes == 1:
        for name in names:
            yield from work(name)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(processes, context) as pool:
        for done in as_completed([pool.submit(work, name) for name in names]):
            yield from done.result()


def _method(place: Place, name: str) -> list[Line]:
    limit = AMPLIFIES.get(name, CLOSE)
    return list(_against_cpu(place, name, partial(experiment, name, **_settings_of(name)), limit))


def _against_cpu(place: Place, what: str, make: Callable[[], Experiment], limit: float) -> Iterator[Line]:
    """A line for one lane and one for several."""
    wanted: list[Any] = []

    def alone() -> str:
        chosen = make()
        wanted.extend([chosen, run(place, chosen, device="cpu")])
        return close(run(place, chosen), wanted[1], limit)

    def in_lanes() -> str:
        try:
            found = run(place, wanted[0], lanes=LANES)
        except ConfigError as error:
            if "cannot train in one pass" in str(error):
                raise Unavailable("no lanes") from error
            raise
        return close(found, wanted[1], limit)

    yield line(f"{what}, one lane", alone)
    if len(wanted) == 2:
        yield line(f"{what}, {LANES} lanes", in_lanes)


def _settings_of(name: str) -> dict[str, Any]:
    """What a method needs from the rest of the experiment: the overrides in the first line of its file."""
    (path,) = (path for path in method_files() if path.stem == name)
    settings: dict[str, Any] = {}
    for text in path.read_text(encoding="utf-8").splitlines()[0].split()[5:]:
        (first, *rest), value = parse_override(text)
        settings[first] = settings.get(first, {}) | {rest[0]: value} if rest else value
    return settings


def _texts(**backbone: Any) -> dict[str, Any]:
    return {"backbone": backbone}


def _instructions(**backbone: Any) -> dict[str, Any]:
    data = {"max_length": 40, "exercises": {"num_train": 48, "num_test": 12}}
    return {"task": "instructions", "data": data, "backbone": {"config": LLAMA, "head": "causal_lm", **backbone}}


def _preferences() -> dict[str, Any]:
    data = {"max_length": 24, "preferences": {"num_train": 36, "num_test": 12}}
    return _instructions() | {"task": "preferences", "data": data}


IMAGES: dict[str, Any] = {
    "task": "shapes",
    "data": {"shapes": {"num_train": 48, "num_test": 24, "size": 16}},
    "backbone": {"kind": "image", "init": "random", "config": VIT, "head": "model"},
}
KINDS: dict[str, Callable[[], Experiment]] = {
    "classifier on a decoder": partial(experiment, **_texts(config=LLAMA, head="causal_lm")),
    "FibecFed on a decoder": partial(experiment, "fibecfed", **_texts(config=LLAMA, head="causal_lm")),
    "masked language model": partial(experiment, **_texts(head="masked_lm")),
    "answers in text": partial(experiment, **_instructions()),
    "FibecFed, answers in text": partial(experiment, "fibecfed", **_instructions()),
    "preferences": partial(experiment, **_preferences()),
    "images": partial(experiment, **IMAGES),
    "encoder and decoder (T5)": partial(experiment, **_instructions(config=T5, head="seq2seq")),
}
