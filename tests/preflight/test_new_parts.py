"""A part that the planner has never seen: what it costs is read off its code, or it is refused with what to write."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from conftest import after_rounds, classes, settings_on
from planned_runs import Ran, run

from fibec_ray.answers import Answers
from fibec_ray.config.load import check
from fibec_ray.data.encoded import TextForm
from fibec_ray.errors import ConfigError
from fibec_ray.low_rank import A, B
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.aggregator import AGGREGATORS
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.fipa import Fipa
from fibec_ray.parts.objective import OBJECTIVES
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.part import Passes
from fibec_ray.parts.sharing.base import Sharing
from fibec_ray.parts.solver import SOLVERS
from fibec_ray.parts.solver.base import Session, Solver
from fibec_ray.preflight import rehearsal
from fibec_ray.preflight.anatomy import anatomy
from fibec_ray.preflight.exchange import Exchange
from fibec_ray.preflight.rehearsal import Rehearsal, Rehearsed
from fibec_ray.tensors import Tensors
from fibec_ray.types import Asked, DeviceUpdate, Extra, LayerScores


class Surprise(Aggregator):
    """Devices send the mean loss of each class, and of each shared tensor two numbers."""

    kind: Literal["surprise"] = "surprise"  # type: ignore[assignment]
    max_samples: int = 5

    def extras_before(
        self, model: LocalModel, shard: Shard, names: Collection[str], round_: int, rng: torch.Generator
    ) -> Tensors:
        rows = torch.randperm(shard.num_samples, generator=rng)[: self.max_samples]
        losses, _ = model.per_sample_grads(shard.batch(rows))
        model.grad(losses.losses.mean(), list(model.trainable.values()))
        return {"losses": torch.zeros(7, dtype=torch.float64)} | {f"two/{name}": torch.zeros(2) for name in names}

    def passes(self, round_: int, answers: Answers) -> Sequence[Passes]:
        return [Passes(self.max_samples, self.max_samples, backwards=1)]

    def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
        return {"losses": Extra((7,), torch.float64)} | {f"two/{name}": Extra((2,)) for name in asked.shared}


class Twice(Solver):
    """Trains twice, the second time from the start of the run, and keeps what came of it and two numbers."""

    kind: Literal["twice"] = "twice"  # type: ignore[assignment]

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        session.train()
        trained = session.read()
        session.load(session.initial)
        session.train(epochs=2, own_model=True)
        kept = session.read()
        session.load(trained)
        seen = int(memory["seen"]) if "seen" in memory else 0
        return {"seen": torch.tensor(seen + 1), "half": torch.zeros(1, dtype=torch.float16), **kept}


class Chatty(Objective):
    kind: Literal["chatty"] = "chatty"  # type: ignore[assignment]

    def finish(
        self, memory: Tensors, control: Tensors, delta: Tensors, num_steps: int, lr: float
    ) -> tuple[Tensors, Tensors]:
        return memory, {"number": torch.ones(1)}


class Broken(Solver):
    kind: Literal["broken"] = "broken"  # type: ignore[assignment]

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        raise KeyError("lost")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AGGREGATORS, "surprise", Surprise)
    monkeypatch.setitem(SOLVERS, "twice", Twice)
    monkeypatch.setitem(SOLVERS, "broken", Broken)
    monkeypatch.setitem(OBJECTIVES, "chatty", Chatty)


def with_parts(**parts: Any) -> dict[str, Any]:
    settings = settings_on("encoder", "fedavg")
    settings["method"] |= {"name": "new", **parts}
    return settings


def rehearsed(settings: dict[str, Any]) -> Rehearsed:
    job = check(settings, "test").job(classes(2))
    return Rehearsal(job, anatomy(job, TextForm())).found


def test_a_codec_is_planned_to_owe_something_of_all_tensors_that_take_turns() -> None:
    first, second, *_ = rehearsed(
        with_parts(peft={"kind": "lora", "take_turns": True}, uplink="topk") | {"rounds": 2}
    ).participations
    assert first.memory.keys() < second.memory.keys()
    assert [any(name.endswith(end) for name in second.memory) for end in (A, B)] == [True, True]


def check_exactly(found: Ran, most: float = 1e-9) -> None:
    planned = counted = 0.0
    for report in found.reports:
        message = found.exchange.message(report.device, report.round, report.num_samples)
        sent = report.bytes_down, report.bytes_up_delta, report.bytes_up_extras
        assert (message.down, message.up_delta, message.up_extras) == sent
        planned += found.devices.device_round(report.device, report.round).flops
        counted += report.flops
    assert planned == pytest.approx(counted, rel=most)
    for (device, _), size in found.states.items():
        assert size == found.exchange.state_bytes(len(found.samples.train[device]), opened=False)


@pytest.mark.parametrize("aggregator", ["surprise", {"kind": "adam", "of": "surprise"}])
def test_extras_of_a_new_aggregator_is_planned_to_the_byte(aggregator: Any, tmp_path: Path) -> None:
    found = run(with_parts(aggregator=aggregator), tmp_path)
    check_exactly(found)
    assert found.reports[-1].bytes_up_extras > 56


def test_a_new_solver_that_trains_twice_is_planned_with_its_work_and_its_state(tmp_path: Path) -> None:
    found = run(with_parts(solver="twice"), tmp_path)
    check_exactly(found)
    assert len(found.states) == len(found.reports)
    later = rehearsed(with_parts(solver="twice")).participations[1]
    assert [(one.epochs, one.own_model) for one in later.trainings] == [(1, False), (2, True)]


@pytest.mark.parametrize("method", ["fibecfed", "adalora", "scaffold", "hetlora", "ditto", "moon", "fedbabu"])
def test_large_adapters_are_planned_alike_without_their_memory(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[Any]:
        taken = rehearsed(settings_on("encoder", method)).participations
        kept = [{name: (value.shape, value.dtype) for name, value in one.memory.items()} for one in taken]
        return [[(one.trainings, one.num_teachers, one.scans, one.squares) for one in taken], kept]

    with_memory = found()
    monkeypatch.setattr(rehearsal, "SMALL", 0)
    assert found() == with_memory


def test_extras_that_an_objective_does_not_name_are_refused_before_the_run() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^method\.objective: .*:Chatty: finish sends \['number'\], but expected_extras names nothing; name",
    ):
        rehearsed(with_parts(objective="chatty"))


def test_an_error_in_a_part_says_where() -> None:
    with pytest.raises(
        ConfigError, match=r"^method\.solver: .*:Broken: solve failed while .* \(.*, line \d+: KeyError: 'lost'\)"
    ):
        rehearsed(with_parts(solver="broken"))


def test_a_part_that_no_plan_can_follow_may_name_one_that_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "as_planned", lambda self: Twice())
    assert len(rehearsed(with_parts(solver="broken")).participations[0].trainings) == 2


@pytest.mark.parametrize("method", ["fedpeptao", "adalora"])
def test_what_the_server_keeps_is_planned_to_the_byte(method: str, tmp_path: Path) -> None:
    """A control variate of each device that has taken part; scores that devices have sent."""
    fleet, worker_spec, _ = after_rounds(6, settings_on("encoder", method, rounds=6), tmp_path)
    fleet.save(tmp_path / "state.safetensors")()
    planned = Exchange(Rehearsal(worker_spec.job, anatomy(worker_spec.job, TextForm()))).checkpoint_bytes
    assert planned == (tmp_path / "state.safetensors").stat().st_size


def test_extras_without_its_cost_is_no_part() -> None:
    with pytest.raises(
        TypeError, match=r"^Silent overrides extras_before, so it must define expected_extras and passes too"
    ):

        class Silent(Aggregator):
            def extras_before(self, *arguments: Any) -> Tensors:
                return {}

    with pytest.raises(TypeError, match=r"^Half overrides extras_after, so it must define passes too"):

        class Half(Aggregator):
            def extras_after(self, *arguments: Any) -> Tensors:
                return {}

            def expected_extras(self, asked: Asked, update: DeviceUpdate) -> Mapping[str, Extra]:
                return {}


def test_what_a_base_class_declares_holds_for_the_base_class_alone() -> None:
    class Renamed(Fipa):
        """Same hooks, same costs."""

    with pytest.raises(
        TypeError, match=r"^More overrides extras_before, so it must define expected_extras and passes too"
    ):

        class More(Fipa):
            def extras_before(self, *arguments: Any) -> Tensors:
                return {}


def test_scores_without_their_cost_are_no_part() -> None:
    with pytest.raises(TypeError, match=r"^Scored overrides score, so it must define passes and example_scores too"):

        class Scored(Sharing):
            def score(self, model: LocalModel, shard: Shard, rng: torch.Generator) -> LayerScores:
                return LayerScores()
