"""A local cluster's start and end, and joining one: what is left behind, who can reach it, and errors in one line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

import fibec_ray
from fibec_ray.errors import CapacityError, ClusterError, ConfigError
from fibec_ray.fleets.ray import address, head, local_cluster, processes, scratch
from fibec_ray.fleets.ray.init import first_line
from fibec_ray.fleets.settings import FleetConfig


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, as those of pytest are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


# --- where a local cluster has its files


def test_files_of_a_cluster_go_where_the_environment_says(short: Path) -> None:
    for environment, parent in (
        ({"RAY_TMPDIR": str(short), "TMPDIR": "/none"}, short),
        ({"RAY_TMPDIR": "", "TMPDIR": str(short / "new")}, short / "new"),
    ):
        made = scratch.make(environment)
        assert made.path.parent == parent and made.note is None and made.path.stat().st_mode & 0o777 == 0o700
        assert [path.name for path in made.path.iterdir()] == [scratch.LOCK]
        made.remove()
        assert not made.path.exists()


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_too_long_for_sockets_gives_way_to_a_short_one(name: str, tmp_path: Path) -> None:
    long = tmp_path / ("job_" * 20)
    made = scratch.make({name: str(long)})
    made.remove()
    assert made.path.parent == Path("/tmp") and list(long.iterdir()) == []
    assert made.note is not None and made.note.startswith(f"{name}: {long} cannot have Ray's sockets")


def test_what_a_killed_driver_left_goes_and_what_one_at_work_has_stays(short: Path) -> None:
    """Here the one that was killed left an old folder, and one that has just begun holds no lock yet. What is not a
    cluster's folder, such as a run directory with a lock of its own, stays too."""
    environment = {"RAY_TMPDIR": str(short)}
    working, killed, begun, foreign = scratch.make(environment), *(short / f"fibec-{name}" for name in "abc")
    for path, lock in ((killed, scratch.LOCK), (begun, scratch.LOCK), (foreign, ".lock")):
        path.mkdir()
        (path / lock).touch()
    for path in (working.path, killed, foreign):
        os.utime(path, (0, 0))
    scratch.make(environment).remove()
    assert not killed.exists() and working.path.exists() and begun.exists() and foreign.exists()
    working.remove()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for where in ("/proc/none", str(tmp_path / "file")):
        with pytest.raises(ConfigError, match=rf"^RAY_TMPDIR: {where}: cannot be written \(.*; point RAY_TMPDIR at"):
            scratch.make({"RAY_TMPDIR": where})


def test_logs_are_kept_where_they_are_wanted(tmp_path: Path, short: Path) -> None:
    made = scratch.make({"RAY_TMPDIR": str(short)})
    folder = made.path
    (folder / "session_2026" / "logs").mkdir(parents=True)
    (folder / "session_2026" / "logs" / "raylet.out").write_text("it died")
    (folder / "session_latest").symlink_to(folder / "session_2026")
    made.remove(tmp_path / "ray_logs")
    assert (tmp_path / "ray_logs" / "raylet.out").read_text() == "it died" and not folder.exists()


# --- an object store that does not fit


def test_an_object_store_larger_than_memory_is_blamed_itself() -> None:
    """Before a local cluster is started, and in the plan of one."""
    with pytest.raises(CapacityError, match=r"^fleet.object_store_mb: Ray's object store of 90000000 MB, and \d+ MB"):
        local_cluster.refuse_large_store(FleetConfig(object_store_mb=90_000_000))


# --- joining


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Somebody who listens, and does this with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection = listening.accept()[0]
                except OSError:
                    return
                kept.append(connection)
                answer(connection)

        kept: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def says(text: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(text)
        connection.close()

    return answer


STRANGERS = {
    "a web server": says(b"HTTP/1.0 505 HTTP Version Not Supported\r\n\r\n"),
    "Redis": says(b"-ERR unknown command 'PRI'\r\n"),
    "one that hangs up": says(b""),
    "one that says nothing": lambda connection: None,
}


@pytest.mark.parametrize("where", ["127.0.0.1:1", "[::1]:1", "no-such-host.invalid:6379", "\udcff:6379"])
def test_an_address_where_nobody_is(where: str) -> None:
    with pytest.raises(ConfigError, match=r"^fleet.address: .*: no Ray head answers there \(.*`ray start --head`"):
        address.refuse_silence(where)


@pytest.mark.parametrize("stranger", STRANGERS)
def test_an_address_where_no_ray_head_is(stranger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "CONNECT_TIMEOUT_S", 0.3)
    with server(STRANGERS[stranger]) as where, pytest.raises(ConfigError) as caught:
        address.refuse_silence(where)
    assert str(caught.value).startswith(f"fleet.address: {where}: ") and "ray start --head" in str(caught.value)


def test_what_greets_as_ray_does_is_taken_for_it() -> None:
    with server(says(bytes(3) + b"\x04" + bytes(5))) as where:
        address.refuse_silence(where)


@pytest.mark.parametrize(
    "wrong", ["http://head:8265", "ray://head:10001", "local", "head", "head:", ":1", "h:99999", ""]
)
def test_addresses_that_no_ray_head_has(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^fleet.address: .*is not the HOST:PORT of a Ray head; give the HOST:PORT"):
        address.resolve(wrong)


def test_addresses_that_one_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [address.resolve(where) for where in ("head:6379", "[::1]:6379")] == ["head:6379", "[::1]:6379"]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address.resolve("auto") == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    with pytest.raises(ConfigError, match="http://10.0.0.1:8265: is not the HOST:PORT"):
        address.resolve("auto")


# --- a whole session, in a process of its own

SESSION = """
import os, sys, psutil, ray
from pathlib import Path
from fibec_ray.fleets.ray.cluster import connect
from fibec_ray.fleets.ray.processes import is_alive
from fibec_ray.fleets.settings import FleetConfig

notes = []
session = connect(FleetConfig(object_store_mb=80), notes.append)
assert not notes, notes
mine = psutil.Process().children(recursive=True)
for process in [psutil.Process(), *mine]:
    for connection in process.net_connections():
        if connection.status == "LISTEN":
            assert connection.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1"), (process.name(), connection.laddr)
folder = session.local.scratch.path
assert mine and str(folder) in " ".join(mine[0].cmdline() + mine[1].cmdline())

@ray.remote
def imported():
    import difflib
    return difflib.__file__

assert "worker_spec-packages" not in os.getcwd() and os.getcwd() not in ray.get(imported.remote(), timeout=60)
session.close(logs_to=Path(sys.argv[1]))
assert not folder.exists() and not any(map(is_alive, mine))
assert (Path(sys.argv[1]) / "raylet.out").is_file()
print("done")
"""


def in_a_process(
    code: str, folder: Path, *arguments: str, files: Mapping[str, str] = MappingProxyType({}), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs code in a folder with files that is not on sys.path, as a user of an installed command does."""
    (folder / "code").mkdir()
    (folder / "code" / "main.py").write_text(code)
    (folder / "work").mkdir()
    for name, content in files.items():
        (folder / "work" / name).write_text(content)
    root = str(Path(fibec_ray.__file__).parents[1])
    return subprocess.run(
        [sys.executable, str(folder / "code" / "main.py"), *arguments],
        cwd=folder / "work",
        env={**os.environ, "PYTHONPATH": root, "HOME": str(folder), "RAY_TMPDIR": "", "TMPDIR": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.ray
def test_a_local_cluster_is_its_user_s_alone_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """In a working directory with a module of the name of one of Python's own."""
    done = in_a_process(
        SESSION, tmp_path, str(tmp_path / "logs"), RAY_AUTH_MODE="", files={"difflib.py": "exit('mine')"}
    )
    assert done.stdout == "done\n" and done.stderr == "", done.stderr
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


FAILING = """
import psutil
from fibec_ray.errors import ClusterError
from fibec_ray.fleets.ray.cluster import connect
from fibec_ray.fleets.ray.processes import is_alive
from fibec_ray.fleets.settings import FleetConfig

try:
    connect(FleetConfig(object_store_mb=80))
except ClusterError as error:
    print(error)
left = [process for process in psutil.Process().children(recursive=True) if is_alive(process)]
assert not left, left
"""


@pytest.mark.ray
def test_a_cluster_that_cannot_start_says_why_in_a_line_and_leaves_nothing_behind(tmp_path: Path, short: Path) -> None:
    """Here Ray's head runs already when its node cannot be described."""
    done = in_a_process(FAILING, tmp_path, RAY_OVERRIDE_RESOURCES="{many CPUs", RAY_TMPDIR=str(short))
    assert done.stdout.startswith("fleet: Ray could not start a local cluster: Expecting property name"), done.stderr
    assert done.stdout.endswith("or set fleet.kind=local to run without Ray\n")
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""
    assert list(short.iterdir()) == []


def test_the_first_error_in_ray_s_logs_is_quoted(tmp_path: Path) -> None:
    logs = tmp_path / "session_2026-01-01" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text(
        "[2026-11-26 07:24:50,486 I 12 12] (raylet) main.cc:1: hello\n"
        "[2026-11-26 07:24:50,486 C 12 12] (raylet) main.cc:2: no more files\n"
        "[2026-11-26 07:24:50,486 E 12 12] (raylet) main.cc:3: a trace\n"
    )
    assert head.last_words(tmp_path, "") == " (main.cc:2: no more files)"
    assert head.last_words(tmp_path / "none", "") == ""
    assert first_line(ClusterError(" \n one.\ntwo")) == "one" and first_line(KeyError()) == "KeyError"


def test_processes_of_a_cluster_are_those_that_name_its_folder_and_what_they_started(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()']) # {tmp_path}"
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other,
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as raylet,
    ):
        while len(found := processes.of(tmp_path)) < 2:
            assert raylet.poll() is None
        assert found[0].pid == raylet.pid and other.pid not in {process.pid for process in found}
        assert processes.still_alive(found, 0) == found
        raylet.communicate(b"\n")
        assert processes.still_alive(found, 10) == []
        other.kill()


def test_auto_leaves_the_private_clusters_of_other_runs_alone(tmp_path: Path) -> None:
    """Told by what a raylet's command line says; these processes only have such a command line."""
    ours, foreign = tmp_path / "fibec-1", tmp_path / "ray"
    for folder in (ours, foreign):
        folder.mkdir()
    (ours / scratch.LOCK).touch()
    command = [sys.executable, "-c", "input()"]
    flags = {ours: "10.9.8.7:1001", foreign: "10.9.8.7:1002"}
    started = [
        subprocess.Popen([*command, f"--gcs-address={where}", f"--temp-dir={folder}"], stdin=subprocess.PIPE)
        for folder, where in flags.items()
    ]
    try:
        assert address.private_addresses() & set(flags.values()) == {flags[ours]}
    finally:
        for process in started:
            process.communicate(b"\n", timeout=60)
