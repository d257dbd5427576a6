"""Runs whose actors, server and nodes are killed give the same bits as an undisturbed run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from conftest import make_regression
from fleets.casualties import Reaper, kill
from fleets.children import in_a_process_of_its_own
from fleets.mortal import with_deaths
from schedules.kinds import SCHEDULED
from schedules.kinds import settings_of as settings_of_schedule

from fibec_ray.config.load import check
from fibec_ray.errors import FleetError
from fibec_ray.fleets.ray.fleet import RayFleet
from fibec_ray.roundlog.reader import log_digest, read_devices, read_rounds
from fibec_ray.runs.simulation import simulate

pytestmark = pytest.mark.ray
POOLED = {"kind": "ray", "placement": "pooled", "num_actors": 2}
SLOW = pytest.mark.slow


def digests(settings: dict[str, Any], folder: Path, callback: Any = None) -> tuple[str, str]:
    run = simulate(check(settings, "test"), folder, callback)
    return run.adapter_digest, log_digest(folder)


def settings_of(tiny_settings: Any, num_rounds: int, fleet: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = tiny_settings("fibecfed", rounds=num_rounds, cohort_size=4)
    return {**made, "fleet": fleet, "evaluation": {"every": num_rounds}}


def network_of(num_rounds: int, fleet: dict[str, Any]) -> dict[str, Any]:
    """A small network, because its actors start in half the time."""
    made = make_regression("fibecfed", rounds=num_rounds, cohort_size=4)
    return {**made, "fleet": fleet, "evaluation": {"every": num_rounds}}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_device_actors_that_are_killed_in_every_round(tiny_settings: Any, tmp_path: Path, ray_cluster: None) -> None:
    num_rounds, rng, deaths = 12, random.Random(5), list[int]()
    reaper = Reaper(lambda round_: deaths.extend(kill("DeviceActor", rng, rng.choice([1, 1, 2]))))
    disturbed = digests(settings_of(tiny_settings, num_rounds, POOLED), tmp_path / "killed", reaper)
    assert disturbed == digests(settings_of(tiny_settings, num_rounds, {"kind": "local"}), tmp_path / "calm")
    rows = read_devices(tmp_path / "killed").to_pylist()
    assert len(deaths) >= num_rounds
    assert any(row["attempt"] > 0 for row in rows)
    assert any("was lost (Actor" in note and "with train of device" in note for note in reaper.notes)
    assert read_rounds(tmp_path / "killed").column("num_lost").to_pylist() == [0] * (num_rounds + 1)


@pytest.mark.parametrize(
    ("num_rounds", "every"), [(2, 2), pytest.param(8, 1, marks=SLOW), pytest.param(8, 5, marks=SLOW)]
)
def test_a_server_that_is_killed_goes_on_from_its_last_checkpoint(
    num_rounds: int, every: int, tmp_path: Path, ray_cluster: None
) -> None:
    """Rounds since the checkpoint are run once more, and logged once."""
    reaper = Reaper(lambda round_: kill("ServerActor") if round_ % 2 else None, lambda round_: 2)
    settings = network_of(num_rounds, {**POOLED, "num_actors": 1}) | {"checkpoint": {"every": every}}
    disturbed = digests(settings, tmp_path / "killed", reaper)
    assert disturbed == digests(settings | {"fleet": {"kind": "local"}}, tmp_path / "calm")
    assert any("the server actor was lost" in note for note in reaper.notes)
    assert len(reaper.struck) == num_rounds


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["DeviceActor", "ServerActor"])
@pytest.mark.parametrize("kind", SCHEDULED)
def test_actors_that_are_killed_while_devices_work_over_several_rounds(
    kind: str, victim: str, tmp_path: Path, ray_cluster: None
) -> None:
    """The server loses old models that devices at work started from, and finds them in its checkpoint or makes them
    again; checkpoints are several rounds apart.
    """
    changes = {"checkpoint": {"every": 3}, "evaluation": {"every": 4}}
    reaper = Reaper(lambda round_: kill(victim) if round_ % 3 == 2 else None)
    disturbed = digests(settings_of_schedule(kind, **changes, fleet=POOLED), tmp_path / "killed", reaper)
    assert disturbed == digests(settings_of_schedule(kind, **changes, fleet={"kind": "local"}), tmp_path / "calm")
    lost = "the server actor was lost" if victim == "ServerActor" else "was lost"
    assert any(lost in note for note in reaper.notes)


def test_a_round_that_cannot_begin_does_not_lose_the_one_before(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def grow(fleet: RayFleet) -> None:
        begun.append(len(begun))
        if len(begun) > 1:
            raise FleetError("no actor is left")

    monkeypatch.setattr(RayFleet, "_grow", grow)
    with pytest.raises(FleetError, match="no actor is left"):
        digests(network_of(2, POOLED), tmp_path / "run")
    assert read_rounds(tmp_path / "run").column("round").to_pylist() == [-1, 0]
    assert len(begun) == 3, "in time, and again when the first round was logged"


@pytest.mark.slow
def test_nodes_that_die_with_their_actors_and_updates(tiny_settings: Any, tmp_path: Path) -> None:
    settings = settings_of(tiny_settings, 4, POOLED)
    found = in_a_process_of_its_own("chaos.py", settings, tmp_path)
    assert tuple(found["digests"]) == digests(settings | {"fleet": {"kind": "local"}}, tmp_path / "calm")
    assert any(note.startswith("updates were lost with their node") for note in found["notes"])
    assert not any("server" in note for note in found["notes"]), "it is on the driver's node, which lives"
    assert any(attempt > 0 for round_, _, _, attempt in found["attempts"] if round_ == 2)
    assert len([row for row in found["attempts"] if row[0] == 3]) == 4, "on new nodes: no other ones are left"


@pytest.mark.slow
def test_actors_that_the_memory_monitor_kills(tiny_settings: Any, tmp_path: Path) -> None:
    settings = settings_of(tiny_settings, 3, {**POOLED, "max_retries": 20})
    found = in_a_process_of_its_own("crowded.py", settings, tmp_path)
    assert any("Actor" in line for line in found["killed"])
    assert any("was lost" in note for note in found["notes"])
    assert tuple(found["digests"]) == digests(settings | {"fleet": {"kind": "local"}}, tmp_path / "calm")


@pytest.mark.slow
def test_a_node_that_joins_gets_an_actor(tiny_settings: Any, tmp_path: Path) -> None:
    settings = settings_of(tiny_settings, 4, {"kind": "ray", "placement": "pooled"})
    found = in_a_process_of_its_own("joining.py", settings, tmp_path)
    assert found["notes"] == ["the cluster has grown: 1 more actor"]
    assert found["actors"] == {"0": ["pool-00000"], "3": ["pool-00000", "pool-00001"]}
    assert tuple(found["digests"]) == digests(settings | {"fleet": {"kind": "local"}}, tmp_path / "calm")


def test_a_round_can_go_on_without_the_lost(tmp_path: Path, ray_cluster: None) -> None:
    fleet, notes = {**POOLED, "max_retries": 0, "on_lost": "drop", "quorum": 0.25}, Reaper(lambda round_: None)
    digests(with_deaths(1, network_of(2, fleet), tmp_path / "deaths"), tmp_path / "run", notes)
    first, second = read_rounds(tmp_path / "run").to_pylist()[1:]
    rows = [row for row in read_devices(tmp_path / "run").to_pylist() if row["round"] == 0]
    assert first["num_lost"] == 1 and first["num_devices"] == 4 and len(rows) == 3
    assert second["num_lost"] == 0, "the actor that is left does it all"
    assert any(note.startswith("round 1: goes on without") for note in notes.notes)


@pytest.mark.slow
def test_a_run_can_end_at_the_first_loss(tmp_path: Path, ray_cluster: None) -> None:
    settings = with_deaths(1, network_of(1, {**POOLED, "num_actors": 1, "on_lost": "abort"}), tmp_path / "deaths")
    with pytest.raises(FleetError, match="train of device .* was lost 1 times"):
        digests(settings, tmp_path / "run")
