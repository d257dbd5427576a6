"""Devices that lie: 300 drawn lies over all aggregators, objectives and uplinks, and how the server treats each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_BERT, make_tiny
from rotation import in_turn
from torch import Tensor

from fibec_ray.config.load import check
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.faults import sent_by
from fibec_ray.learning.group_worker import GroupWorker
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.server import Server
from fibec_ray.parts.aggregator import AGGREGATORS
from fibec_ray.parts.objective import OBJECTIVES
from fibec_ray.parts.uplink import UPLINKS
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import all_finite, digest
from fibec_ray.types import DeviceUpdate, RoundPlan

NUM_LIES = 300
COHORT = 6
SGD = {"optimizer": "sgd", "schedule": "constant", "weight_decay": 0, "batch_size": 4, "learning_rate": 0.05}
SMALL = {**TINY_BERT, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
RANKS = {"kind": "lora", "ranks": [2, 8]}
FIPA = {"kind": "fipa", "warmup_rounds": 0}


def each_part() -> Iterator[tuple[str, dict[str, Any]]]:
    """A method for each aggregator, for each objective, for each uplink, and some of several."""
    partners: dict[str, dict[str, Any]] = {
        "flora": {"peft": "moving_lora"},
        "fedex_lora": {"peft": "moving_lora"},
        "fedmomentum": {"peft": "moving_lora"},
        "hetlora": {"peft": RANKS},
        "fed_sb": {"peft": "lora_sb"},
        "feddyn": {"objective": "feddyn"},
        "fipa": {"aggregator": FIPA},
        "adalora": {"peft": "adalora"},
        "rank_pruning": {"peft": RANKS, "aggregator": "hetlora"},
    }
    for kind in AGGREGATORS:
        yield kind, {"aggregator": kind, **partners.get(kind, {})}
    for kind in OBJECTIVES:
        if kind != "feddyn":
            yield f"mean, {kind}", {"objective": kind, **partners.get(kind, {})}
    for kind in UPLINKS:
        if kind != "none":
            yield f"mean, {kind}", {"uplink": kind}
    yield "ranks, topk", {"peft": RANKS, "uplink": "topk"}
    yield "fipa, int8", {"aggregator": FIPA, "uplink": "int8"}
    yield "ranks", {"peft": {**RANKS, "scale_by": "device"}}
    yield "fedfisher, observed, scaffold", {"aggregator": "fedfisher", "objective": "scaffold"}
    yield (
        "normalised merging, scaffold",
        {
            "aggregator": {"kind": "fisher_merging", "normalise": True},
            "objective": "scaffold",
        },
    )
    yield "adam of fipa, scaffold", {"aggregator": {"kind": "adam", "of": FIPA}, "objective": "scaffold"}
    yield (
        "adam of krum, adalora",
        {
            "peft": "adalora",
            "objective": "adalora",
            "aggregator": {"kind": "adam", "of": {"kind": "krum"}},
        },
    )
    yield "fipa, pairs", {"aggregator": {**FIPA, "block": "pair", "solve": "damped"}}
    yield "fipa, all", {"aggregator": {**FIPA, "block": "all", "null_space": "fedavg"}}


METHODS = dict(each_part())


@dataclass(frozen=True)
class Round:
    """A method's first round as it goes without lies."""

    worker: GroupWorker
    server: Callable[[], Server]
    plan: RoundPlan
    updates: list[DeviceUpdate]

    def goes_on(self, server: Server, round_: int) -> bool:
        """True if three devices train another round, which the server takes and learns from."""
        plan, broadcast, before = replace(self.plan, round=round_), server.broadcast(round_), server.digest()
        updates = [self.worker.train(plan, device, broadcast)[0] for device in plan.cohort[:3]]
        learns = server.absorb(round_, updates) == {} and all_finite(server.learnt)
        return learns and (not updates[0].delta or server.digest() != before)

    def absorbed(self, updates: list[DeviceUpdate], cohort: list[int]) -> tuple[Server, dict[int, str]]:
        server = self.server()
        return server, server.absorb(0, [sent_by(d, u) for d, u in zip(cohort, updates, strict=True)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Round]:
    folder: Path = tmp_path_factory.mktemp("lies")
    prepared: Any = None

    @cache
    def first_round(name: str) -> Round:
        nonlocal prepared
        method = METHODS[name]
        settings = make_tiny({"name": "liars", **method}, cohort_size=COHORT, local=SGD, backbone={"config": SMALL})
        experiment = check(settings, "test")
        if prepared is None:
            prepared = prepare(experiment, folder)
        own = folder / str(list(METHODS).index(name))
        own.mkdir()
        (own / "data").symlink_to(folder / "data")
        worker_spec = WorkerSpec(experiment.job(prepared.answers(experiment.task)), own, cache_dir())
        worker, plan = worker_spec.worker(), plan_round(worker_spec.job, 0)

        def server() -> Server:
            made = Server(worker_spec.job, worker.initial, worker.layout)
            made.setup([])
            return made

        broadcast = server().broadcast(0)
        return Round(worker, server, plan, [worker.train(plan, device, broadcast)[0] for device in plan.cohort])

    return first_round


# --- lies

Lie = Callable[[DeviceUpdate, np.random.Generator], DeviceUpdate | None]
"""None where it does not apply."""


def of_tensor(which: str, change: Callable[[Tensor], Any], starts: str = "", floats: bool = False) -> Lie:
    """Changes a tensor of `delta` or `extras`. floats: only where it can hold any number."""

    def lie(update: DeviceUpdate, rng: np.random.Generator) -> DeviceUpdate | None:
        tensors = getattr(update, which)
        names = [n for n, value in tensors.items() if value.numel() and value.any() and starts in n]
        names = [n for n in names if tensors[n].is_floating_point() or not floats]
        if not names:
            return None
        name = names[int(rng.integers(len(names)))]
        return replace(update, **{which: tensors | {name: change(tensors[name].clone())}})

    return lie


def of_names(which: str, change: Callable[[dict[str, Tensor], str], Any]) -> Lie:
    """Changes the dict itself, at one of its names."""

    def lie(update: DeviceUpdate, rng: np.random.Generator) -> DeviceUpdate | None:
        tensors = dict(getattr(update, which))
        return replace(update, **{which: change(tensors, list(tensors)[int(rng.integers(len(tensors)))])})

    return lambda update, rng: lie(update, rng) if getattr(update, which) else None


def of_eigenvectors(factor: float) -> Lie:
    def lie(update: DeviceUpdate, rng: np.random.Generator) -> DeviceUpdate | None:
        scaled = {name: factor * value for name, value in update.extras.items() if "/vectors/" in name}
        return replace(update, extras=update.extras | scaled) if scaled else None

    return lie


def field_of(**values: Any) -> Lie:
    return lambda update, rng: replace(update, **values)


def at_the_end(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[-1] = torch.tensor(value, dtype=torch.float64)  # infinite in a type that cannot hold it
        return tensor

    return change


BOTH = ("delta", "extras")
WRONG_ENDS = {word: at_the_end(float(word)) for word in ("nan", "inf", "-inf")}
WRONG_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "one dimension more": lambda t: t[None],
    "longer": lambda t: torch.cat([t, t]),
    "shorter": lambda t: t[1:],
    "empty": lambda t: t[:0],
    "a scalar": lambda t: t.sum(),
    "float64": lambda t: t.double(),
    "bfloat16": lambda t: t.bfloat16(),
    "integers": lambda t: t.long(),
    "booleans": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "elsewhere": lambda t: t.to("meta"),
    "a list": lambda t: t.tolist(),
    "nothing": lambda t: None,
}
WRONG_DICTS: dict[str, Callable[[dict[str, Tensor], str], Any]] = {
    "missing": lambda d, n: {k: v for k, v in d.items() if k != n},
    "all missing": lambda d, n: {},
    "renamed": lambda d, n: {("other" if k == n else k): v for k, v in d.items()},
    "no dict": lambda d, n: list(d.values()),
    "None": lambda d, n: None,
}
WRONG_FIELDS: dict[str, list[Any]] = {
    "num_samples": [0, -1, 2**60, float("nan"), 1.5, True, "5", None],
    "num_steps": [-1, 0, 2**60, float("inf"), 2.0, None],
    "learning_rate": [0.0, -0.05, float("nan"), float("inf"), 1e-30, None],
    "rank": [0, -1, 3, 10**6, True, "8"],
    "device": [-1, 10**6, None, 2.0],
    "fault": ["the battery is empty", 7],
}
LIES: dict[str, Lie] = {
    **{f"{which}: {name}": of_tensor(which, change) for which in BOTH for name, change in WRONG_TENSORS.items()},
    **{
        f"{which}: {name}": of_tensor(which, change, floats=True)
        for which in BOTH
        for name, change in WRONG_ENDS.items()
    },
    **{f"delta: {name}": of_names("delta", change) for name, change in WRONG_DICTS.items()},
    **{f"extras: {name}": of_names("extras", change) for name, change in WRONG_DICTS.items()},
    **{f"{name}: {value!r}": field_of(**{name: value}) for name, values in WRONG_FIELDS.items() for value in values},
    "delta: huge": of_tensor("delta", at_the_end(1e25), floats=True),
    "delta: large": of_tensor("delta", lambda t: t.copy_(torch.tensor(1e7)), floats=True),
    "delta: one place for all": of_tensor("delta", torch.ones_like, "indices"),
    "delta: a place behind the end": of_tensor("delta", at_the_end(2**31 - 1), "indices"),
    "delta: a negative place": of_tensor("delta", lambda t: t - 10**6, "indices"),
    "delta: negative scales": of_tensor("delta", torch.neg, "scales"),
    "delta: one name more": lambda u, rng: replace(u, delta=u.delta | {"own": torch.zeros(2)}),
    "extras: one name more": lambda u, rng: replace(u, extras=u.extras | {"own": torch.zeros(2)}),
    "extras: negative Fisher information": of_tensor("extras", torch.neg, "fisher/"),
    "extras: no covariance of inputs": of_tensor("extras", torch.neg, "inputs/"),
    "extras: an indefinite covariance": of_tensor("extras", at_the_end(-1.0), "outputs/"),
    "extras: negative eigenvalues": of_tensor("extras", torch.neg, "/values"),
    "extras: long eigenvectors": of_eigenvectors(3),
    "extras: zero eigenvectors": of_eigenvectors(0),
    "extras: another control variate": of_tensor("extras", lambda t: t + 1, "control/"),
    "extras: a huge control variate": of_tensor("extras", lambda t: 1e30 * t, "control/"),
    "extras: negative scores": of_tensor("extras", lambda t: -t - 1, "scores/"),
}


def lies_about(update: DeviceUpdate, rng: np.random.Generator, count: int) -> Iterator[tuple[str, DeviceUpdate]]:
    """Different ones; those about extras first, where there are any."""
    names = list(LIES)
    order = sorted(rng.permutation(len(names)), key=lambda i: not names[i].startswith("extras"))
    order = order if rng.random() < 0.5 else list(rng.permutation(len(names)))
    found = ((names[i], LIES[names[i]](update, rng)) for i in order)
    yield from [(name, lie) for name, lie in found if lie is not None][:count]


each = pytest.mark.parametrize("name", in_turn(list(METHODS), 12, "liars"))


@each
def test_the_round_goes_on_as_if_the_liar_had_not_sent_anything(name: str, data: Any) -> None:
    """No traceback, the others' result, a finite state, a reason in words, and a next round that works."""
    honest: Round = data(name)
    number = list(METHODS).index(name)
    rng = np.random.default_rng(number)
    place = number % COHORT
    others, cohort = [*honest.updates[:place], *honest.updates[place + 1 :]], list(honest.plan.cohort)
    liar = cohort[place]
    without, _ = honest.absorbed(others, [*cohort[:place], *cohort[place + 1 :]])
    for what, lie in lies_about(honest.updates[place], rng, -(-NUM_LIES // len(METHODS))):
        server, bad = honest.absorbed([*others[:place], lie, *others[place:]], cohort)
        assert list(bad) == [liar], what
        assert bad[liar].startswith("the ") and "\n" not in bad[liar] and len(bad[liar]) < 300 or "fault" in what
        assert digest(server.state()) == digest(without.state()) and all_finite(server.learnt), what
    assert honest.goes_on(server, 1)


@each
def test_a_round_of_liars_alone_teaches_nothing(name: str, data: Any) -> None:
    honest: Round = data(name)
    lies = [replace(update, num_samples=0) for update in honest.updates]
    server, bad = honest.absorbed(lies, list(honest.plan.cohort))
    assert list(bad) == list(honest.plan.cohort)
    assert digest(server.state()) == digest(honest.server().state())
    assert server.absorb(1, []) == {} and honest.goes_on(server, 2)


def test_every_part_is_lied_to() -> None:
    kinds = [str(method) for method in METHODS.values()]
    assert all(
        any(repr(kind) in text for text in kinds)
        for kind in [*AGGREGATORS, *OBJECTIVES, *UPLINKS]
        if kind not in ("plain", "none")
    )
