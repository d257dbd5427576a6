"""How a command ends: signals, unforeseen system errors, long messages; as small programs that import nothing heavy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fibec_ray
from fibec_ray.cli.entry import how_to_resume, readable

ROOT = Path(fibec_ray.__file__).parents[1]
WAITS = """
import sys, time
from argparse import Namespace
from pathlib import Path
from fibec_ray.cli import entry

def command(arguments):
    with entry.advice(lambda: entry.how_to_resume(Path("my run"))):
        print("ready", flush=True)
        time.sleep(30)

sys.exit(entry.run(lambda: Namespace(command=command, prints=False)))
"""


def ended_by(number: int, folder: Path, program: str = WAITS, before: str = "") -> tuple[int, str]:
    """Exit code and stderr."""
    command = ["bash", "-c", f'{before} exec "$0" -c "$1"', sys.executable, program]
    child = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    return child.returncode, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_one_line_that_says_how_to_go_on(number: int, code: int, tmp_path: Path) -> None:
    assert ended_by(number, tmp_path) == (
        code,
        "fibec-ray: interrupted; the run had not started; run the command again\n",
    )
    (tmp_path / "my run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "my run" / "checkpoints" / "run.json").touch()
    assert ended_by(number, tmp_path) == (code, "fibec-ray: interrupted; resume with: fibec-ray resume 'my run'\n")


def test_a_library_that_turns_sigterm_into_an_exit(tmp_path: Path) -> None:
    """As ray.init does."""
    program = WAITS.replace(
        "def command(arguments):",
        "import signal\ndef command(arguments):\n    signal.signal(15, lambda number, frame: sys.exit(number))",
    )
    code, err = ended_by(signal.SIGTERM, tmp_path, program)
    assert code == 143 and err.startswith("fibec-ray: interrupted; ")


def test_a_library_that_replaces_the_handlers(tmp_path: Path) -> None:
    program = WAITS.replace(
        "def command(arguments):",
        """import signal
from fibec_ray.interrupts import handlers_kept

@handlers_kept()
def library():
    signal.signal(signal.SIGTERM, lambda number, frame: print("mine"))

def command(arguments):
    library()""",
    )
    assert ended_by(signal.SIGTERM, tmp_path, program)[0] == 143


def test_nohup_is_respected(tmp_path: Path) -> None:
    program = WAITS.replace("time.sleep(30)", "time.sleep(0.5)")
    assert ended_by(signal.SIGHUP, tmp_path, program, before="trap '' HUP;") == (0, "")


def test_a_system_error_that_nobody_foresaw_is_one_line(tmp_path: Path) -> None:
    program = WAITS.replace("time.sleep(30)", "open('none/here')")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "fibec-ray: none/here: No such file or directory\n")


def test_long_words_are_shortened_and_remedies_are_not() -> None:
    said = readable(f"{'x' * 5000}: no such file; give another path")
    assert len(said) < 400 and said.endswith("x: no such file; give another path")


def test_paths_in_advice_can_be_copied(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "run.json").touch()
    assert how_to_resume(folder) == f"resume with: fibec-ray resume '{folder}'"


@pytest.mark.parametrize("encoding", ["", "latin-1"])
def test_names_of_files_are_utf8_in_every_locale(encoding: str, tmp_path: Path) -> None:
    """And what is printed is in the terminal's own encoding."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom fibec_ray.cli import entry\nentry.speak_utf8()\n"
        "print(ascii(sys.argv[1]), sys.getfilesystemencoding(), sys.stdout.encoding)"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, str(program), "r\u00fcn"], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | locale,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name, files, terminal = done.stdout.split()
    assert (name, files) == (r"'r\xfcn'", "utf-8") and terminal in (encoding or "ascii", "ANSI_X3.4-1968", "iso8859-1")
