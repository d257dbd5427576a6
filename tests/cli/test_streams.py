"""Standard streams that are closed, full, broken or in ASCII: the command goes on, and its exit code is its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fibec_ray
from fibec_ray.cli.streams import Output, ReaderGone, Sink, encodable, harmless

ROOT = Path(fibec_ray.__file__).parents[1]
PROGRAM = """
import sys
from argparse import Namespace
from pathlib import Path
from fibec_ray import errors
from fibec_ray.cli import entry

def command(arguments):
    for number in range(20_000):
        print("line", number, "\\u00e4 \\u2212 \\u4e2d")
    print("a note", file=sys.stderr)
    Path("done").touch()
    if sys.argv[2] == "fails":
        raise errors.RunError("it failed")

sys.exit(entry.run(lambda: Namespace(command=command, prints=sys.argv[1] == "prints")))
"""
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """bash, with PROGRAM as $P; the exit code is that of the program, not of what reads from it."""
    (folder / "program.py").write_text(PROGRAM)
    return subprocess.run(
        ["bash", "-c", f"P='{sys.executable} program.py'; {line}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder, capture_output=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "$P runs well | head -n 1 > /dev/null",
        "$P runs well 2>&1 | head -n 1 > /dev/null",
        "$P runs well 2> >(exit)",
        "$P runs well >&-",
        "$P runs well >&- 2>&-",
        "$P runs well <&- >&- 2>&-",
        pytest.param("$P runs well > /dev/full", marks=needs_full),
        pytest.param("$P runs well 2> /dev/full", marks=needs_full),
        pytest.param("$P runs well > /dev/full 2>&1", marks=needs_full),
    ],
)
def test_a_run_goes_on_when_nobody_reads(line: str, tmp_path: Path) -> None:
    done = shell(line, tmp_path)
    assert done.returncode == 0 and (tmp_path / "done").exists()
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    failed = shell(line.replace("well", "fails"), tmp_path)
    assert failed.returncode == 1


@needs_full
def test_the_other_stream_says_once_that_output_is_lost(tmp_path: Path) -> None:
    done = shell("$P runs well > /dev/full", tmp_path)
    assert done.stderr.decode().splitlines() == [
        "fibec-ray: stdout cannot be written (No space left on device); the rest of it is lost",
        "a note",
    ]


def test_a_command_that_only_prints_stops_when_its_reader_goes(tmp_path: Path) -> None:
    done = shell("$P prints well | head -n 1", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "line 0 ä − 中\n".encode(), b"")
    assert not (tmp_path / "done").exists()


@needs_full
def test_a_command_that_only_prints_fails_if_it_cannot(tmp_path: Path) -> None:
    assert shell("$P prints well > /dev/full", tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"line 0 \xe4 - \u4e2d"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, rb"line 0 \xe4 - \u4e2d"),
        ({"PYTHONIOENCODING": "cp1252"}, b"line 0 \xe4 - \\u4e2d"),
        ({"PYTHONIOENCODING": "utf-8"}, "line 0 ä − 中".encode()),
    ],
)
def test_output_in_an_encoding_that_lacks_characters(environment: dict[str, str], line: bytes, tmp_path: Path) -> None:
    done = shell("$P runs well", tmp_path, **environment)
    assert done.returncode == 0 and done.stdout.splitlines()[0] == line


def test_descriptors_that_are_closed_are_not_given_to_files(tmp_path: Path) -> None:
    """Else the first file that is opened would get what is printed."""
    program = PROGRAM.replace('Path("done").touch()', 'file = open("done", "w"); assert file.fileno() > 2')
    (tmp_path / "other.py").write_text(program)
    line = f"{sys.executable} other.py runs well <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == 0 and (tmp_path / "done").read_text() == ""


# --- the pieces


@pytest.fixture
def broken() -> Iterator[Sink]:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="ascii") as stream:
        yield Sink(stream, 1)


def test_what_nobody_reads_is_dropped(broken: Sink) -> None:
    output = Output(broken)
    assert output.write("text") == 4
    output.flush()
    output.writelines(["more", "and more"])
    output.flush()
    assert isinstance(broken.lost, BrokenPipeError) and not broken.failed


def test_a_reader_that_is_needed(broken: Sink) -> None:
    broken.quits = True
    broken.write("text")
    with pytest.raises(ReaderGone):
        broken.flush()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("over\rwritten\b", r"over\rwritten\x08"),
        ("left\u202eright\u2066", r"left\u202eright\u2066"),
        ("line\u2028end", r"line\u2028end"),
        ("Windows\r\nline", "Windows\nline"),
        ("tab\tand\nline, ä 中 👩\u200d🔬 \xa0", "tab\tand\nline, ä 中 👩\u200d🔬 \xa0"),
    ],
)
def test_text_cannot_command_a_terminal(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_characters_that_an_encoding_lacks() -> None:
    assert encodable("0.5 ± 0.1 – 2 × 3 ≥ 4 …", "ascii") == "0.5 +/- 0.1 - 2 x 3 >= 4 ..."
    assert encodable("± ≥", "cp1252") == "± >="
    assert encodable("\udcff", "utf-8") == r"\xff", "a byte of a file name that is not UTF-8"
