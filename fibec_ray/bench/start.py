"""Where the time to the first round goes: `python -m fibec_ray.bench.start`.

Runs the bare loop and fibec_ray on the workload of bench.speed, in turn, and prints a Markdown table of their times to
the end of the first round, and of the CPU seconds of each process until then.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from fibec_ray.bench.contenders import Contender, bare, ours
from fibec_ray.bench.machine import busy_with_others, machine
from fibec_ray.bench.speed import COHORT_SIZE, NUM_DEVICES
from fibec_ray.bench.watch import ALONE
from fibec_ray.bench.workload import Sizes, write_arrays, write_texts

INTERVAL_S = 0.25
ROUNDS = 2
NAMES = {"ray::Device": "device actors", "ray::Server": "server actor", "python": "driver and its helpers"}
"""Processes by the beginning of their title; the others are Ray's own."""
RAY = "Ray's own processes"


@dataclass(frozen=True)
class Start:
    """One run, from the command to the end of its first round. cpu_s: CPU seconds by kind of process."""

    first_round_s: float
    cpu_s: Mapping[str, float]


def measure(contender: Contender, workload: Path, out: Path) -> Start:
    """Run one contender to its end. Raises CalledProcessError if it fails."""
    out.mkdir()
    seen: list[tuple[float, dict[int, tuple[str, float]]]] = []
    command, env = contender.command(workload, out), {**os.environ, **ALONE, **contender.env(out)}
    began = time.time()
    with (out / "output.txt").open("wb") as output:
        child = subprocess.Popen(command, cwd=out, env=env, stdout=output, stderr=subprocess.STDOUT)
        known: dict[int, tuple[str, float]] = {}
        while child.poll() is None:
            known |= _cpu_seconds(child.pid)
            seen.append((time.time(), dict(known)))
            time.sleep(INTERVAL_S)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, (out / "output.txt").read_text())
    ended = contender.found(out).ends[0]
    at = [processes for when, processes in seen if when <= ended + INTERVAL_S][-1]
    cpu: dict[str, float] = {}
    for title, seconds in at.values():
        cpu[_kind(title)] = cpu.get(_kind(title), 0.0) + seconds
    return Start(ended - began, cpu)


def _cpu_seconds(pid: int) -> dict[int, tuple[str, float]]:
    """Title and CPU seconds of a process and its descendants."""
    found = {}
    try:
        for process in [root := psutil.Process(pid), *root.children(recursive=True)]:
            with process.oneshot():
                times = process.cpu_times()
                found[process.pid] = process.name(), times.user + times.system
    except psutil.Error:  # one has just ended
        pass
    return found


def _kind(title: str) -> str:
    return next((name for start, name in NAMES.items() if title.startswith(start)), RAY)


def table(found: dict[str, list[Start]]) -> str:
    """Medians of the runs, by contender; the first is the reference of the ratios, which are taken within a turn."""
    kinds = list(NAMES.values())[::-1] + [RAY]
    lines = [f"|  | first round after, s | of the bare loop | CPU, s | {', s | '.join(kinds)}, s |"]
    lines.append("| --- " * (len(kinds) + 4) + "|")
    reference = [start.first_round_s for start in next(iter(found.values()))]
    for label, starts in found.items():
        seconds = median(start.first_round_s for start in starts)
        ratio = median(start.first_round_s / other for start, other in zip(starts, reference, strict=True))
        total = median(sum(start.cpu_s.values()) for start in starts)
        cells = [median(start.cpu_s.get(kind, 0.0) for start in starts) for kind in kinds]
        numbers = " | ".join(f"{cell:.1f}" for cell in cells)
        lines.append(f"| {label} | {seconds:.1f} | {ratio:.2f} | {total:.1f} | {numbers} |")
    return "\n".join(lines)


def run(folder: Path, contenders: Sequence[Contender], repeats: int) -> dict[str, list[Start]]:
    """Run all contenders in turn, `repeats` times."""
    workload = write_texts(Sizes(NUM_DEVICES, COHORT_SIZE, ROUNDS), folder / "workload").parent
    write_arrays(workload / "experiment.yaml")
    found: dict[str, list[Start]] = {contender.label: [] for contender in contenders}
    for repeat in range(repeats):
        for contender in contenders:
            out = folder / f"{contender.name}-{repeat}"
            found[contender.label].append(measure(contender, workload, out))
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m fibec_ray.bench.start", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contender")
    given = parser.parse_args()
    busy = busy_with_others()
    print(machine(), f"(other work had {busy:.0%} of the cores at the start)" if busy > 0.1 else "", flush=True)
    with tempfile.TemporaryDirectory(prefix="fibec-bench-") as folder:
        (engine,) = (one for one in ours("float32") if one.name == "ours-fp32-1")
        print(table(run(Path(folder), [bare("float32"), engine], given.repeats)))


if __name__ == "__main__":
    main()
