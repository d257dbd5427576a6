"""What a solver is lent: batches and dropout that belong to epochs, and what of its training is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds

from fibec_ray.learning.device_round import DeviceRound
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.session import LocalSession
from fibec_ray.tensors import Tensors, digest, select, subtract
from fibec_ray.types import Broadcast

Lend = Any


@pytest.fixture
def lend(tiny_settings: Any, tmp_path: Path) -> Lend:
    """lend(local={...}): the session of device 0 in round 0, with a personal head and dropout."""

    def session(method: Any = None, **changes: Any) -> LocalSession:
        settings = tiny_settings(method or "fedper", backbone={"dropout": True}, **changes)
        _, worker_spec, _ = after_rounds(0, settings, tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        worker = worker_spec.worker()
        shared = {name: value for name, value in worker.initial.items() if not name.startswith("head.")}
        control = worker_spec.job.method.objective.absorb(shared, {}, (), 1)
        return DeviceRound(worker, plan_round(worker_spec.job, 0), 0, Broadcast(0, shared, control)).session()

    return session


def after(session: LocalSession, **settings: Any) -> Tensors:
    session.load(session.received)
    session.train(**settings)
    return session.read()


def test_it_says_what_is_shared_and_what_was_received(lend: Lend) -> None:
    session = lend()
    assert session.personal == {"head.weight", "head.bias"} and session.shared | session.personal == set(
        session.initial
    )
    assert digest(session.read()) == digest(session.received) == digest(session.initial)


def test_an_epoch_has_its_own_batches_and_dropout(lend: Lend) -> None:
    """The same epoch again: the same bits, whatever was trained in between. Another: others."""
    session = lend()
    first = after(session)
    other = after(session, first_epoch=1)
    assert digest(after(session)) == digest(first) != digest(other)


def test_the_learning_rate_has_a_factor(lend: Lend) -> None:
    """One step of SGD without clipping: half the rate, half the way."""
    session = lend(local={"optimizer": "sgd", "clip": None, "max_steps": 1})
    whole, half = (subtract(after(session, rate=rate), session.received) for rate in (1.0, 0.5))
    for name, value in whole.items():
        torch.testing.assert_close(value / 2, half[name], rtol=1e-3, atol=1e-7)


def test_training_of_an_own_model_is_not_counted(lend: Lend) -> None:
    session = lend()
    session.train(own_model=True)
    assert session.trained.num_steps == session.trained.num_samples == 0 and session.trained.mean_loss is None
    flops = session.model.work.flops
    session.train()
    alone = lend()
    alone.train()
    assert session.trained.num_steps == alone.trained.num_steps > 0
    assert session.model.work.flops == 2 * flops


def test_training_of_personal_tensors_alone_is_not_counted(lend: Lend) -> None:
    """Steps, samples and loss are of what the server gets; of two such trainings, together."""
    session = lend()
    session.train(moves=session.personal)
    assert session.trained.num_steps == 0
    session.train(moves=session.shared)
    one = session.trained
    session.train(moves=session.shared, first_epoch=1)
    two = session.trained
    assert (two.num_steps, two.num_samples) == (2 * one.num_steps, 2 * one.num_samples)
    assert one.mean_loss is not None and two.mean_loss is not None and two.mean_loss != one.mean_loss


def test_squared_gradients_are_recorded_where_the_tensors_move(lend: Lend) -> None:
    """FibecFed's masks learn from the training of the personal tensors, in whichever part of the round that is."""
    method = {"name": "watching", "sharing": "body", "mask": "fisher_neurons"}
    session = lend(method)
    session.train(moves=session.personal)
    head = session.trained.squares
    assert head.keys() == session.personal
    session.train(moves=session.shared)
    assert digest(session.trained.squares) == digest(head)
    session.train(own_model=True)
    assert digest(session.trained.squares) == digest(head)
    session.train(moves=session.personal, first_epoch=1)
    assert digest(session.trained.squares) != digest(head)


def test_max_steps_bounds_each_training(lend: Lend) -> None:
    session = lend(local={"max_steps": 1, "epochs": 2})
    session.train()
    session.train(first_epoch=2)
    assert session.trained.num_steps == 2


def test_the_objective_is_about_the_shared_model(lend: Lend) -> None:
    """A control variate moves the shared model's training alone."""
    method = {"name": "scaffold", "sharing": "body", "objective": "scaffold"}
    sgd = {"optimizer": "sgd", "learning_rate": 0.1}
    session = lend(method, local=sgd)
    plain = after(session), after(session, own_model=True)
    control = {name: torch.ones_like(value) for name, value in session.terms.control.items()}
    session.terms = replace(session.terms, control=control)
    corrected = after(session), after(session, own_model=True)
    assert digest(plain[0]) == digest(plain[1]) == digest(corrected[1]) != digest(corrected[0])
    assert select(control, session.personal) == {}
