"""Runs steps in processes of their own: `python -m fibec_ray.testing.gpu.child STEP DEVICE SMALL FOLDER ONLY`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fibec_ray.testing.gpu.lines import Line, Section

RESULT = "lines.jsonl"
OUTPUT = "output.txt"


def in_child(name: str, device: str, small: bool, folder: Path, only: Sequence[str], limit_s: float) -> Section:
    """Run a step. Lines that it finished before a crash or its limit count."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", __name__, name, device, str(int(small)), str(folder), ",".join(only)]
    started = time.monotonic()
    note = watched(command, folder / OUTPUT, limit_s)
    path = folder / RESULT
    texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return Section(name, time.monotonic() - started, [Line(**json.loads(text)) for text in texts], note)


def measured(name: str, command: Sequence[str], folder: Path, limit_s: float) -> Section:
    """Run a command that prints a table."""
    folder.mkdir(parents=True)
    started = time.monotonic()
    note = watched(command, folder / OUTPUT, limit_s)
    path = folder / OUTPUT
    output = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    table = "\n".join(text for text in output.splitlines() if text.startswith("|"))
    return Section(name, time.monotonic() - started, [], note, table)


def watched(command: Sequence[str], output: Path, limit_s: float) -> str:
    """Run a command with its output in a file. Returns why it failed, or ''. limit_s: seconds; 0 or less: no time."""
    if limit_s <= 0:
        return "not started, since no time was left"
    with output.open("wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit_s:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # the group that it started
                child.wait()
    tail = " ".join(output.read_text(encoding="utf-8", errors="replace").split()[-60:])
    return f"exit code {code}: {tail}" if code else ""


def main(argv: Sequence[str]) -> None:
    """Run the step, and write each line as soon as it is known."""
    name, device, small, folder, only = argv
    from fibec_ray.environment import prepare_libraries, quiet_warnings, set_default

    set_default("FIBEC_RAY_CACHE", str(Path(folder).parent / "cache"))
    prepare_libraries()
    quiet_warnings()
    from fibec_ray.testing.gpu.place import Place
    from fibec_ray.testing.gpu.steps import STEPS

    place = Place(device, small == "1", Path(folder), tuple(only.split(",")) if only else ())
    with (place.folder / RESULT).open("w", encoding="utf-8") as file:
        for found in STEPS[name].work(place):
            file.write(json.dumps(asdict(found)) + "\n")
            file.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
