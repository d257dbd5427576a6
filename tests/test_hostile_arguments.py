"""Every command with arguments that no command expects: one line and exit code 2, or an answer; never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import make_digits
from rotation import in_turn
from round_logs import small_run

from fibec_ray.cli.main import main

LONGEST_LINE = 3000


def _file(path: Path) -> None:
    path.write_text("hello")


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has a hundred characters at most
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _holds_itself(path: Path) -> None:
    path.mkdir()
    (path / "again").symlink_to(path)


def _foreign_log(path: Path) -> None:
    (path / "rounds").mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), path / "rounds" / "part-000000.parquet")


def _log_that_is_a_file(path: Path) -> None:
    path.mkdir()
    (path / "rounds").write_text("")


def _log_of_folders(path: Path) -> None:
    (path / "rounds" / "part-000000.parquet").mkdir(parents=True)


def _with(name: str, content: str | bytes) -> Callable[[Path], None]:
    """A run with one file that is not as it should be."""

    def make(path: Path) -> None:
        shutil.copytree(path.with_name("good"), path)
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def _summary(**values: Any) -> Callable[[Path], None]:
    return _with("summary.json", json.dumps({"status": "finished", "method": "m", "metric": "accuracy", **values}))


def _sweep(**values: Any) -> Callable[[Path], None]:
    record = {"name": "s", "reference": "a", "seeds": [0], "variants": []}
    return _with("sweep.yaml", yaml.safe_dump(record | values))


PATHS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "file": _file,
    "empty file": Path.touch,
    "folder": Path.mkdir,
    "dangling link": _dangling,
    "link to itself": _loop,
    "folder that holds itself": _holds_itself,
    "socket": _socket,
    "pipe": os.mkfifo,
    "foreign log": _foreign_log,
    "log that is a file": _log_that_is_a_file,
    "log of folders": _log_of_folders,
    "stray part": _with("rounds/part-000000 (copy).parquet", b"PAR1"),
    "part that is a link": lambda path: [_foreign_log(path), (path / "rounds" / "part-000001.parquet").symlink_to("x")],
    "summary that is a list": _with("summary.json", "[1]"),
    "deep summary": _with("summary.json", "[" * 100_000),
    "binary summary": _with("summary.json", bytes(range(256))),
    "summary of odd types": _summary(method=["m"], seed={}, rounds="many", anchors=[1], heterogeneity=3, task=7),
    "summary of odd numbers": _summary(seed=1e400, rounds=-1, anchors={"majority": "high"}),
    "summary of huge numbers": _summary(seed="9" * 5000, rounds=10**400),
    "summary with a seed of text": _summary(seed="first"),
    "summary with a fraction of a seed": _summary(seed=float("nan"), rounds=float("inf")),
    "summary of nulls": _summary(method=None, metric=None, seed=None, rounds=None, status=None, anchors=None),
    "config that is a list": _with("config.yaml", "[1, 2]"),
    "config of another thing": _with("config.yaml", "task: 3\ndata: [1]\nname: {a: b}\n"),
    "binary config": _with("config.yaml", bytes(range(256))),
    "config with a tag": _with("config.yaml", "a: !!python/object/apply:os.getcwd []"),
    "sweep of nothing": _sweep(),
    "sweep of text": _sweep(variants=["a", "b"]),
    "sweep of odd variants": _sweep(variants=[{"name": ["a"], "group": 3, "folder": {"x": 1}}]),
    "sweep of no seeds": _sweep(seeds=None, variants=[{"name": "a", "group": "", "folder": "a"}]),
    "sweep that leads out": _sweep(variants=[{"name": "a", "group": "", "folder": "../../.."}]),
    "sweep that is a list": _with("sweep.yaml", "[1]"),
}
TEXTS = {
    "nothing": "",
    "long": "x" * 300,
    "very long": "a/" * 3000,
    "null byte": "a\0b",
    "surrogate": "a\udcff",
    "line ends": "a\nb\r",
    "escapes": "\x1b]0;title\x07\x1b[31m",
    "brackets": "[/red]",
    "user that is not there": "~nosuchuser/x",
    "dash": "-",
    "below a file": "exp.yaml/x",
    "unknown scheme": "what://is/this",
    "no scheme": "://",
    "half an address": "http://[::1",
    "file URL": "file:///no/such/folder",
    "relative file URL": "file://",
    "chained URL": "simplecache::file:///no/such",
    "URL with a space": "http://a b/c",
}
"""None names a place outside of the test's own folder that could be written."""
READS = {
    "resume": ["resume", "{}"],
    "verify": ["verify", "{}"],
    "replay": ["replay", "{}", "--round", "0", "--device", "0"],
    "report": ["report", "{}", "--out", "page.html"],
    "export": ["export", "{}", "--to", "tensorboard", "--dest", "board"],
    "watch": ["watch", "{}"],
    "compare": ["compare", "{}"],
    "compare two": ["compare", "{}", "{}"],
    "runs": ["runs", "{}"],
    "sweep-table": ["sweep-table", "{}"],
    "run": ["run", "{}", "--out", "out"],
    "show": ["show", "{}"],
    "plan": ["plan", "{}"],
    "sweep": ["sweep", "{}", "--out", "out"],
}
"""Commands that read a place."""
WRITES = {
    "run into": ["run", "exp.yaml", "--out", "{}"],
    "plan for": ["plan", "exp.yaml", "--out", "{}"],
    "report into": ["report", "good", "--out", "{}"],
    "compare into": ["compare", "good", "--out", "{}"],
    "sweep into": ["sweep", "exp.yaml", "--out", "{}"],
}
OTHERS = {
    "compare with": ["compare", "good", "--reference", "{}"],
    "show a name": ["show", "exp.yaml", "name={}"],
    "show with": ["show", "exp.yaml", "{}"],
    "jobs": ["jobs", "--address", "{}"],
    "submit": ["submit", "exp.yaml", "--address", "{}"],
    "logs": ["logs", "{}", "--address", "127.0.0.1:1"],
    "fetch": ["fetch", "{}", "{}", "--address", "127.0.0.1:1"],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("good") / "good", {0: 0.5}, rounds=range(-1, 1))


@pytest.fixture
def here(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with an experiment that cannot start, and a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(make_digits(num_devices=100_000)))
    shutil.copytree(good, tmp_path / "good")
    return tmp_path


def command(arguments: list[str], value: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    try:
        code = main([argument.replace("{}", value) for argument in arguments])
    except SystemExit as stop:  # argparse has its own way to say what it expects
        assert stop.code == 2
        return
    out, err = capsys.readouterr()
    assert code in (0, 2), (code, err)
    if code == 2:
        assert err.startswith("fibec-ray: ") and err.count("\n") == 1 and len(err) < LONGEST_LINE, err[:500]
    assert "Traceback" not in err
    assert all(text.isprintable() for text in (*out.splitlines(), *err.splitlines())), (out, err)


@pytest.mark.parametrize("name", in_turn(list(READS | WRITES), 8, "odd places"))
def test_a_place_that_holds_something_else(name: str, here: Path, capsys: Any) -> None:
    for kind, make in PATHS.items():
        if kind == "pipe" and (READS | WRITES)[name][0] in ("run", "show", "plan", "sweep"):
            continue  # an experiment may come through a pipe
        folder = here / kind
        folder.mkdir()
        shutil.copytree(here / "good", folder / "good")
        make(folder / "odd")
        command((READS | WRITES)[name], f"{kind}/odd", capsys)


@pytest.mark.parametrize("name", READS | WRITES | OTHERS)
def test_a_text_that_is_no_answer(name: str, here: Path, capsys: Any) -> None:
    for value in TEXTS.values():
        command((READS | WRITES | OTHERS)[name], value, capsys)


def test_a_page_never_takes_the_place_of_a_device(here: Path, capsys: Any) -> None:
    os.mkfifo("pipe")  # stands for /dev/null, which root could replace
    command(["report", "good", "--out", "pipe"], "", capsys)
    assert Path("pipe").is_fifo() and not list(here.glob(".*"))
