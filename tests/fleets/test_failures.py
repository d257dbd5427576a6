"""Calls on real actors that die, hang or fail; the actors are small, so that nothing but the pool is at work."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import exceptions as rex

from fibec_ray.errors import FleetError, ModelError, ServerLostError
from fibec_ray.fleets.ray.failures import LOST, input_lost
from fibec_ray.fleets.ray.pool import ActorPool
from fibec_ray.fleets.ray.schedule import Call

pytestmark = pytest.mark.ray


class Worker:
    """Leaves a file for each call it begins, and a large and a small result."""

    def __init__(self, folder: Path):
        self._folder = folder

    def ready(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def never(self) -> None:
        time.sleep(1000)

    def work(self, key: int, attempt: int, then: str) -> tuple[bytes, str]:
        (self._folder / f"{key}-{attempt}-{os.getpid()}").touch()
        if then == "die":
            time.sleep(0.5)  # so that the answer to the call before is out
            os._exit(1)
        if then == "hang":
            time.sleep(60)
        if then == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if then == "fail":
            raise ModelError("this backbone has no blocks")
        return bytes(200_000), f"call {key}, attempt {attempt}"


@contextmanager
def pool_of(
    size: int,
    folder: Path,
    call_timeout_s: float = 60,
    max_retries: int = 2,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[ActorPool]:
    remote = ray.remote(Worker).options(num_cpus=0.1, max_restarts=1, max_task_retries=0)
    pool = ActorPool(lambda i: remote.remote(folder), size, 60, call_timeout_s, max_retries, note)
    pool.start()
    try:
        yield pool
    finally:
        pool.stop()


def call(
    key: int, fate: Callable[[int], str] = lambda attempt: "", seconds: float = 1.0, home: int | None = None
) -> Call:
    def submit(actor: Any, attempt: int) -> list[ray.ObjectRef]:
        refs: list[ray.ObjectRef] = actor.work.options(num_returns=2).remote(key, attempt, fate(attempt))
        return refs

    return Call(key, submit, seconds, home=home)


def first(fate: str) -> Callable[[int], str]:
    """At the first attempt only."""
    return lambda attempt: fate if attempt == 0 else ""


def begun(folder: Path) -> dict[int, list[int]]:
    """The attempts of each call, in order."""
    found: dict[int, list[int]] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        key, attempt, _ = name.split("-")
        found.setdefault(int(key), []).append(int(attempt))
    return found


def test_what_had_ended_is_kept_and_what_stood_behind_a_lost_call_has_not_been_tried(
    tmp_path: Path, ray_cluster: None
) -> None:
    """One actor; the third of eight calls kills it, while the fourth is queued behind."""
    calls = [call(key, first("die") if key == 2 else first(""), seconds=8.0 - key) for key in range(8)]
    with pool_of(1, tmp_path) as pool:
        ended = {one.key: one for one in pool.run(calls)}
        assert len(ray.get(ended[0].refs[0], timeout=10)) == 200_000, "made by an actor that is dead"
    assert {key: one.value for key, one in ended.items()} == {
        key: f"call {key}, attempt {1 if key == 2 else 0}" for key in range(8)
    }
    assert begun(tmp_path) == {key: [0, 1] if key == 2 else [0] for key in range(8)}


def test_a_hung_actor_is_ended_and_its_call_done_again(tmp_path: Path, ray_cluster: None) -> None:
    with pool_of(2, tmp_path, call_timeout_s=3) as pool:
        ended = [one.value for one in pool.run([call(0, first("hang")), call(1), call(2)])]
    assert sorted(ended) == ["call 0, attempt 1", "call 1, attempt 0", "call 2, attempt 0"]


def test_a_stopped_process_is_replaced(tmp_path: Path, ray_cluster: None) -> None:
    """It cannot be asked to end itself, as one that only hangs can."""
    notes: list[str] = []
    with pool_of(2, tmp_path, call_timeout_s=2, note=notes.append) as pool:
        assert len(list(pool.run([call(0, first("stop")), call(1)]))) == 2
        while not all(seat.well for seat in pool._seats):
            list(pool.run([call(2)]))
            time.sleep(0.2)
        assert len(list(pool.run([call(key) for key in range(3, 9)]))) == 6
    assert len(notes) == 1 and "was lost (TimeoutError)" in notes[0]
    assert len({path.name.split("-")[2] for path in tmp_path.glob("[3-8]-*")}) == 2, "both work again"


def test_calls_that_are_lost_too_often_can_be_spared(tmp_path: Path, ray_cluster: None) -> None:
    calls = [call(0, lambda attempt: "die"), call(1), call(2)]
    with pool_of(2, tmp_path) as pool:
        ended = {one.key: one for one in pool.run(calls, max_retries=1, spares=True)}
    assert isinstance(ended[0].lost, rex.RayActorError) and ended[0].attempt == 2
    assert ended[1].lost is None and ended[2].lost is None
    assert begun(tmp_path)[0] == [0, 1]


def test_what_belongs_to_a_lost_actor_is_done_by_others(tmp_path: Path, ray_cluster: None) -> None:
    """No actor has room any more; the one that is left does all."""
    with pool_of(2, tmp_path) as pool:
        list(pool.run([call(0), call(1)]))
        pool._seats[1].late = True
        pool._seats[1].answer = pool._seats[1].actor.never.remote()
        ended = [one.key for one in pool.run([call(key, home=key % 2) for key in range(2, 8)])]
        pool._seats[1].answer = None
    assert sorted(ended) == list(range(2, 8))


def test_a_pool_grows(tmp_path: Path, ray_cluster: None) -> None:
    with pool_of(1, tmp_path) as pool:
        list(pool.run([call(0)]))
        pool.grow(1)
        while not all(seat.well for seat in pool._seats):
            list(pool.run([call(1)]))
        list(pool.run([call(key) for key in range(2, 8)]))
        assert pool.size == 2
    pids = {path.name.split("-")[2] for path in tmp_path.iterdir()}
    assert len(pids) == 2


def test_actors_start_in_waves_and_work_is_not_kept_waiting_for_all(tmp_path: Path, ray_cluster: None) -> None:
    remote, most = ray.remote(Worker).options(num_cpus=0.1), 0

    def make(i: int) -> Any:
        nonlocal most
        most = max(most, sum(seat.answer is not None for seat in pool._seats) + 1)
        return remote.remote(tmp_path)

    pool = ActorPool(make, 7, 60, 60, 2, at_once=2)
    pool.start()
    try:
        assert sum(seat.actor is not None for seat in pool._seats) == 2
        first = next(iter(pool.run([call(key, home=key) for key in range(7)])))
        assert first.key < 7 and sum(seat.actor is None for seat in pool._seats) > 0
        ended = {one.key for one in pool.run([call(key, home=key) for key in range(7)])}
        assert ended == set(range(7)) and all(seat.well for seat in pool._seats) and most == 2
    finally:
        pool.stop()


def test_actors_that_have_no_place_keep_no_others_from_starting(tmp_path: Path, ray_cluster: None) -> None:
    """The second of them is for a node that the cluster does not have, and the third of another kind."""
    notes = list[str]()

    def make(i: int) -> Any:
        resources = {"no such node": 1} if i == 1 else {}
        return ray.remote(Worker).options(num_cpus=0.1, resources=resources).remote(tmp_path)

    pool = ActorPool(make, 3, 12, 60, 2, notes.append, at_once=1, kind_of=lambda i: i // 2)
    pool.start()
    try:
        calls = [call(0), Call(1, call(1).submit, kind=1)]
        assert {one.key for one in pool.run(calls)} == {0, 1}
        assert any("actor 1 did not start" in note for note in notes)
    finally:
        pool.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_actors_with_a_device_each(tmp_path: Path, ray_cluster: None) -> None:
    """Cohorts of 20 of 200, each device on its own actor, and an actor is killed in each round; the actors are thin."""
    rng, notes = random.Random(0), list[str]()
    remote = ray.remote(Worker).options(num_cpus=0.01, max_restarts=2, max_task_retries=0)
    pool = ActorPool(lambda i: remote.remote(tmp_path), 200, 600, 60, 2, notes.append, at_once=8)
    pool.start()
    try:
        for round_ in range(5):
            cohort = sorted(rng.sample(range(200), 20))
            unlucky, others = cohort[round_], [key for key in cohort if key != cohort[round_]]
            calls = [call(unlucky, lambda attempt: "" if attempt else "die", home=unlucky)]
            calls += [call(key, home=key) for key in others]
            assert sorted(ended.key for ended in pool.run(calls)) == cohort
        while any(seat.actor is None or seat.answer is not None for seat in pool._seats):
            list(pool.run([call(0)]))
        list(pool.run([call(key, home=key) for key in range(200)]))
        assert all(seat.well for seat in pool._seats) and len(notes) == 5
    finally:
        pool.stop()
    pids = {path.name.split("-")[2] for path in tmp_path.iterdir()}
    assert len(pids) >= 200


def test_what_calls_are_given_and_is_lost_is_not_blamed_on_their_actor(tmp_path: Path, ray_cluster: None) -> None:
    giver = ray.remote(Worker).options(num_cpus=0.1, max_restarts=0).remote(tmp_path)
    gift = giver.work.remote(99, 0, "die")

    def submit(actor: Any, attempt: int) -> list[ray.ObjectRef]:
        return [actor.work.remote(gift, attempt, "")]

    with pool_of(1, tmp_path) as pool, pytest.raises(ServerLostError, match="what the server sent is lost"):
        list(pool.run([Call(0, submit)]))


def test_the_memory_monitor_s_error_is_a_loss_too() -> None:
    assert issubclass(rex.OutOfMemoryError, LOST) and not issubclass(rex.OutOfMemoryError, rex.RayActorError)
    assert not input_lost(rex.OutOfMemoryError("the actor's own"))


def test_a_call_that_kills_every_actor_is_given_up(tmp_path: Path, ray_cluster: None) -> None:
    with (
        pool_of(2, tmp_path, max_retries=1) as pool,
        pytest.raises(FleetError, match="call 0 was lost 2 times, .*fleet.on_lost=drop"),
    ):
        list(pool.run([call(0, lambda attempt: "die"), call(1)]))
    assert begun(tmp_path)[0] == [0, 1]


def test_an_error_of_the_call_s_own_is_raised_as_it_is(tmp_path: Path, ray_cluster: None) -> None:
    with pool_of(1, tmp_path) as pool:
        with pytest.raises(ModelError, match="this backbone has no blocks"):
            list(pool.run([call(0), call(1, first("fail"))]))
        assert [one.value for one in pool.run([call(2)])] == ["call 2, attempt 0"], "the actor lives"
