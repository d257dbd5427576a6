"""What `fetch` brings here, and what it refuses: jobs and archives that somebody else made. No cluster is needed."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fibec_ray.errors import ClusterError, FibecError, RunDirError
from fibec_ray.jobs.client import Job
from fibec_ray.jobs.fetch import fetch, folder_name
from fibec_ray.jobs.submit import RUNS, quoted
from fibec_ray.jobs.unpack import unpack


class OneShell:
    """A cluster of one machine with a home of its own: what is submitted runs in bash at once."""

    url = "http://127.0.0.1:8265"

    def __init__(self, home: Path):
        self._home, self._logs = home, dict[str, str]()
        self._codes: dict[str, int] = {}

    def submit(self, entrypoint: str, id_: str, runtime_env: Any, metadata: Any) -> None:
        done = subprocess.run(
            ["bash", "-c", entrypoint], env={"HOME": str(self._home), "PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        )  # fmt: skip
        self._logs[id_], self._codes[id_] = done.stdout, done.returncode

    def info(self, id_: str) -> Job:
        return Job(id_, "FAILED" if self._codes[id_] else "SUCCEEDED", "", 0, 0)

    def log(self, id_: str) -> str:
        return self._logs[id_]


def job(out: str, name: str = "mine") -> Job:
    return Job("id", "SUCCEEDED", "", 0, 0, {"fibec_name": name, "fibec_out": out})


def a_run(folder: Path) -> Path:
    (folder / "rounds").mkdir(parents=True)
    (folder / "config.yaml").write_text("name: mine\n")
    (folder / "rounds" / "init.parquet").write_bytes(b"log")
    (folder / "data").mkdir()
    (folder / "data" / "rows.npy").write_bytes(b"rows")
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_run_comes_through_the_log_of_a_job(tmp_path: Path) -> None:
    a_run(tmp_path / "home" / "fibec_ray_runs" / "mine")
    left_out = fetch(OneShell(tmp_path / "home"), job(f"{RUNS}/mine"), tmp_path / "here")  # type: ignore[arg-type]
    assert files_in(tmp_path / "here") == ["config.yaml", "rounds/init.parquet"] and "data" in left_out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "home"]


@pytest.mark.parametrize("place", ["before", "after", "within"])
def test_lines_of_ray_are_no_part_of_the_run(place: str, tmp_path: Path) -> None:
    """Ray 2.60 writes the command into its log from a buffer, while the command runs."""

    class Chatty(OneShell):
        def submit(self, entrypoint: str, id_: str, runtime_env: Any, metadata: Any) -> None:
            super().submit(entrypoint, id_, runtime_env, metadata)
            log = self._logs[id_]
            at = {"before": 0, "after": len(log), "within": len(log) // 2}[place]
            self._logs[id_] = f"{log[:at]}Running entrypoint for job {id_}: {entrypoint}\n{log[at:]}the job has ended\n"

    a_run(tmp_path / "home" / "fibec_ray_runs" / "mine")
    fetch(Chatty(tmp_path / "home"), job(f"{RUNS}/mine"), tmp_path / "here")  # type: ignore[arg-type]
    assert files_in(tmp_path / "here") == ["config.yaml", "rounds/init.parquet"]


def test_nothing_that_comes_is_run(tmp_path: Path) -> None:
    """Python files of the run's own parts come along."""
    run = a_run(tmp_path / "home" / "run")
    (run / "parts").mkdir()
    (run / "parts" / "my_rules.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n")
    (run / "config.yaml").write_text("method: {aggregator: {kind: 'my_rules.py:X'}}\n")
    for shared in (True, False):
        fetch(OneShell(tmp_path), job(str(run)), tmp_path / str(shared), shared=shared)  # type: ignore[arg-type]
        assert "parts/my_rules.py" in files_in(tmp_path / str(shared))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_here_is_copied_only_if_it_is_said_to_be_shared(scheme: str, tmp_path: Path) -> None:
    """A job that names a private folder of whoever fetches gets the cluster's own folder packed, or nothing."""
    there, cluster = a_run(tmp_path / "srv" / "run"), OneShell(tmp_path)
    assert fetch(cluster, job(f"{scheme}{there}"), tmp_path / "a", shared=True) == []  # type: ignore[arg-type]
    assert "data/rows.npy" in files_in(tmp_path / "a")
    fetch(cluster, job(f"{scheme}{there}"), tmp_path / "b")  # type: ignore[arg-type]
    assert "data/rows.npy" not in files_in(tmp_path / "b"), "it came through the cluster"
    private = tmp_path / "private"
    private.mkdir()
    (private / "key").write_text("secret")
    with pytest.raises(RunDirError, match="is not a run directory on this machine; leave --shared out"):
        fetch(cluster, job(f"{scheme}{private}"), tmp_path / "c", shared=True)  # type: ignore[arg-type]
    assert not (tmp_path / "c").exists()


def test_a_shared_folder_is_copied_without_what_its_links_lead_to(tmp_path: Path) -> None:
    there = a_run(tmp_path / "run")
    (tmp_path / "key").write_text("secret")
    (there / "key").symlink_to(tmp_path / "key")
    fetch(OneShell(tmp_path), job(str(there)), tmp_path / "here", shared=True)  # type: ignore[arg-type]
    assert (tmp_path / "here" / "key").is_symlink()


@pytest.mark.parametrize(
    "url", ["local:///etc", "memory://x", "simplecache::file:///etc", "zip://x::file:///x.zip", "http://host/run"]
)
def test_urls_that_may_name_files_of_this_machine(url: str, tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="not a URL of object storage"):
        fetch(OneShell(tmp_path), job(url), tmp_path / "here")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../../etc", "..", ".", "", "/etc", "a/b", "a\\b", ".ssh", "a\nb", "x" * 300, "~root"]
)
def test_a_name_that_is_no_folder_name(name: str) -> None:
    with pytest.raises(ClusterError, match=r"is not a folder name; give a DEST"):
        folder_name(job("/srv/run", name))


def test_names_that_are_folder_names() -> None:
    assert [folder_name(job("/x", name)) for name in ("digits", "a-2", "raysubmit_1", "a.2")]


def test_a_place_cannot_bring_commands_with_it(tmp_path: Path) -> None:
    """The shell of the cluster's head fills in RUNS, and nothing else."""
    for place in (f"{RUNS}/$(touch owned)", f"{RUNS}/`touch owned`", '/x"; touch owned; "', f'{RUNS}"; touch owned; "'):
        subprocess.run(["bash", "-c", f"echo {quoted(place)}"], cwd=tmp_path, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_taken_or_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    for target in (tmp_path / "taken", tmp_path / "taken" / "mine" / "below"):
        with pytest.raises(RunDirError):
            fetch(OneShell(tmp_path), job("/srv/run"), target)  # type: ignore[arg-type]
    assert files_in(tmp_path) == ["taken/mine"]


# --- archives


def archive(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz", format: int = tarfile.PAX_FORMAT) -> str:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=format) as file:  # type: ignore[call-overload]
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            file.addfile(member, io.BytesIO(content))
    return base64.b64encode(packed.getvalue()).decode()


def member(name: str, kind: bytes = tarfile.REGTYPE, **values: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    for key, value in values.items():
        setattr(found, key, value)
    return found


HOSTILE = {
    "above": archive((member("../evil"), b"x")),
    "link out": archive((member("a", tarfile.SYMTYPE, linkname="/etc"), b""), (member("a/evil"), b"x")),
    "link inside": archive((member("a", tarfile.SYMTYPE, linkname="b"), b"")),
    "hard link": archive((member("a", tarfile.LNKTYPE, linkname="/etc/passwd"), b"")),
    "pipe": archive((member("a", tarfile.FIFOTYPE), b"")),
    "device": archive((member("a", tarfile.CHRTYPE, devmajor=1, devminor=5), b"")),
    "not base64": "!!!",
    "not gzip": base64.b64encode(b"hello" * 100).decode(),
    "not tar": base64.b64encode(__import__("gzip").compress(b"hello" * 1000)).decode(),
    "cut": archive((member("a"), os.urandom(50_000)))[:20_000],
    "nothing": "",
    "no members": archive(),
    "zeros": base64.b64encode(__import__("gzip").compress(bytes(30_000))).decode(),
    "absolute": archive((member("/evil"), b"x")),
    "backslashes": archive((member("..\\evil"), b"x")),
    "drive": archive((member("c:evil"), b"x")),
    "escape sequence": archive((member("a\x1b[31m"), b"x")),
    "deep": archive((member("d/" * 1500 + "d"), b"x")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_that_is_no_run_directory(kind: str, tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="what the cluster sent is not a run directory"):
        unpack(HOSTILE[kind], tmp_path / "in" / "run")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "in" / "evil").exists()


def test_times_that_no_file_can_have_are_left_out(tmp_path: Path) -> None:
    odd = member("a", pax_headers={"mtime": "1e300"})
    unpack(
        archive((member(".", tarfile.DIRTYPE), b""), (odd, b"x"), (member("./b", mtime=1e9), b"y")), tmp_path / "run"
    )
    assert [(tmp_path / "run" / name).stat().st_mtime for name in "ab"] == [0, 1e9]


def test_what_an_archive_unpacks_to_is_limited(tmp_path: Path) -> None:
    """Bytes, files, and headers: a name of megabytes is packed into a few."""
    large, many = archive((member("a"), bytes(2_000_000))), archive(*((member(f"a{i}"), b"") for i in range(30)))
    deep = archive((member("x/" * 500_000 + "a"), b""))
    for packed in (large, many, deep):
        assert len(packed) < 20_000
        with pytest.raises(RunDirError, match=r"more than 1 MB or 20 files"):
            unpack(packed, tmp_path / "run", most_bytes=1_000_000, most_files=20)
    unpack(large, tmp_path / "run")
    assert (tmp_path / "run" / "a").stat().st_size == 2_000_000


def test_a_file_with_holes_counts_in_full(tmp_path: Path) -> None:
    """GNU tar packs them as a list of the parts that are there."""
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(10**10)
    packed = subprocess.run(["tar", "-Scz", "-C", tmp_path, "holes"], capture_output=True, check=True).stdout
    with pytest.raises(FibecError):
        unpack(base64.b64encode(packed).decode(), tmp_path / "run")
    assert not (tmp_path / "run" / "holes").exists()
