"""A local cluster starts in the background, and ends with its driver, however the driver ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import fibec_ray
from fibec_ray.fleets.ray import local_cluster, processes
from fibec_ray.fleets.settings import FleetConfig


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where clusters have their files: a folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@pytest.mark.parametrize("settings", [{"kind": "local"}, {"address": "head:6379"}])
def test_runs_that_need_no_cluster_of_their_own_start_none(settings: dict[str, str], short: Path) -> None:
    with local_cluster.started_early(FleetConfig.model_validate(settings), 2, pytest.fail) as cluster:
        assert cluster is None
    assert list(short.iterdir()) == []


@pytest.mark.ray
@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_run_that_fails_while_its_cluster_starts_leaves_nothing(short: Path, seconds: float) -> None:
    """At once, and when Ray's own processes have started."""
    cluster = local_cluster.start(FleetConfig(object_store_mb=80), pytest.fail, 2)
    time.sleep(seconds)
    found = cluster._processes()
    cluster.abandon()
    assert found
    assert processes.still_alive(found, 0) == [] and list(short.iterdir()) == []
    assert processes.of(local_cluster.HEAD) == []


@pytest.mark.ray
@pytest.mark.parametrize("end", ["stop", "abandon"])
def test_a_head_whose_command_cannot_be_read_yet_ends_too(
    end: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel lets the parent go on before the command of a new process is there."""
    cluster = local_cluster.start(FleetConfig(object_store_mb=80), pytest.fail, 2)
    head = psutil.Process(cluster.process.pid)
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_names", lambda process, mark: False)
        getattr(cluster, end)()
    assert not processes.is_alive(head) and list(short.iterdir()) == []


KILLED = """
import os, signal, sys
from fibec_ray.fleets.ray.local_cluster import start
from fibec_ray.fleets.settings import FleetConfig

cluster = start(FleetConfig(object_store_mb=80), print, 2)
if sys.argv[1] == "started":
    cluster.address()
print(*(process.pid for process in cluster._processes()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.ray
@pytest.mark.parametrize(("stage", "fewest"), [("starting", 1), ("started", 4)])
def test_a_cluster_ends_with_a_driver_that_is_killed(stage: str, fewest: int, short: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(fibec_ray.__file__).parents[1])}
    command = [sys.executable, "-c", KILLED, stage]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= fewest, done.stderr
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert processes.still_alive(left, 20) == []
    late = [each for each in psutil.process_iter() if processes._names(each, str(short))]
    assert processes.still_alive(late, 10) == [], "those that the head started after its driver had ended"


def test_workers_are_preloaded_only_where_they_become_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    expected = {None: True, 15: True, 8: False}
    for num_actors, preloads in expected.items():
        config = FleetConfig(placement="pooled", num_actors=num_actors)
        assert local_cluster._fills_the_machine(config, 100) is preloads
    assert not local_cluster._fills_the_machine(FleetConfig(), 4), "four devices have four actors at most"


@pytest.mark.parametrize(("other", "agrees"), [(True, False), (False, True)])
def test_a_cluster_is_started_by_the_fibec_ray_of_the_driver(other: bool, agrees: bool, tmp_path: Path) -> None:
    """A new interpreter may find another one. Workers must not preload that."""
    if other:
        (tmp_path / "fibec_ray").mkdir()
        (tmp_path / "fibec_ray" / "__init__.py").touch()
    root = Path(fibec_ray.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    say = "import runpy, sys; print(runpy.run_path(sys.argv[1])['import_package']())"
    say += "; from fibec_ray.fleets.ray import processes; print(processes.__file__)"
    command = [sys.executable, "-P", "-c", say, local_cluster.HEAD]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert done.stdout.splitlines() == [str(agrees), processes.__file__]


def test_a_start_that_is_interrupted_while_it_speaks_leaves_no_folder(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(local_cluster, "_shared_memory", lambda: 0.0)
    with pytest.raises(KeyboardInterrupt):
        local_cluster.start(FleetConfig(object_store_mb=80), interrupt)
    assert list(short.iterdir()) == []
