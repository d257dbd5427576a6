"""Speed on one GPU: a plain PyTorch and PEFT loop, the engine's kernels, and whole runs of `fibec-ray run`.

    python -m fibec_ray.bench.gpu                        MiniLM, RoBERTa-large, and LLaMA-7B with 8 of its blocks
    python -m fibec_ray.bench.gpu --short                MiniLM and RoBERTa-large with few lanes, under 3 minutes
    python -m fibec_ray.bench.gpu --device cpu --smallest          tries the benchmark itself

Bases are bfloat16, with LoRA r = 8 on query and value and a linear head on mean-pooled states. A device-round is 4
steps. In runs of `fibec-ray run` every device takes part in every round. The first round (models are loaded) and the
last (evaluation) do not count. Each row is measured in a process of its own. Prints Markdown.
Flower is measured where `make bench` has installed it, or with --only flower, which installs it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fibec_ray.bench.contenders import Rival, round_ends
from fibec_ray.bench.environments import InstallError, is_installed, python_of
from fibec_ray.bench.gpu_cases import CASES, MINILM, SHORT, SMALLEST, STEPS, Case, write
from fibec_ray.bench.gpu_table import Measured, Row, table, targets
from fibec_ray.bench.lanes import peak_tflops
from fibec_ray.bench.machine import machine
from fibec_ray.bench.runs import say
from fibec_ray.bench.watch import CommandError, watch
from fibec_ray.bench.workload import Sizes, write_arrays, write_texts
from fibec_ray.roundlog.reader import peak_gpu_gb

LIMIT_S = 300
"""limit for one row"""
KINDS = ("bare", "kernels", "graph", "engine", "flower")


FLOWERS_DEVICES, FLOWERS_COHORT = 100, 20


class Failed(Exception):
    """Why a row has no figures."""


@dataclass(frozen=True)
class Bench:
    """How to measure. fleet: kind of the runs' fleet. rounds: measured ones. folder: for runs."""

    device: str
    fleet: str
    steps: int
    rounds: int
    folder: Path

    def trial(self, kind: str, name: str, lanes: int) -> Measured:
        """Run a process of `gpu_trials`. Raises Failed."""
        values = [kind, name, self.device, str(lanes), str(self.steps), str(time.time())]
        output = _output([sys.executable, "-m", "fibec_ray.bench.gpu_trials", *values])
        found: dict[str, float] = json.loads(output.splitlines()[-1])
        return Measured(found["rate"], found["gb"], found.get("first_s"))

    def engine(self, name: str, case: Case, lanes: int) -> Measured:
        """A run of `fibec-ray run` with this number of lanes. Raises Failed."""
        folder = self.folder / f"{name}-{lanes}"
        cohort_size = max(lanes, min(4, max(case.lanes)))
        fleet: dict[str, Any] = {"kind": self.fleet, "lanes": lanes, "device": self.device}
        fleet |= {"placement": "pooled", "num_actors": 1} if self.fleet == "ray" else {}
        config = write(case, cohort_size, self.rounds + 2, folder, fleet)
        started = time.time()
        _output([sys.executable, "-m", "fibec_ray", "run", str(config), "--out", str(folder / "run")])
        ends = round_ends(folder / "run")
        rate = cohort_size * self.rounds / (ends[-2] - ends[0])
        return Measured(rate, peak_gpu_gb(folder / "run"), ends[0] - started)

    def flower(self) -> Measured:
        """Flower's simulation on the same device-rounds of MiniLM (`workload.py`). Raises Failed."""
        sizes = Sizes(FLOWERS_DEVICES, FLOWERS_COHORT, self.rounds + 2)
        workload, out = write_texts(sizes, self.folder / "flower").parent, self.folder / "flower-out"
        write_arrays(workload / "experiment.yaml")
        out.mkdir()
        try:
            rival = Rival("flower", "flower", python_of("flower"), "flower", "bfloat16")
            watched = watch([*rival.command(workload, out), self.device], out, rival.env(out), LIMIT_S)
            ends = rival.found(out).ends
        except (CommandError, InstallError, OSError) as error:
            raise Failed(str(error)) from error
        return Measured(FLOWERS_COHORT * self.rounds / (ends[-2] - ends[0]), None, ends[0] - watched.started)


def measure(bench: Bench, cases: Mapping[str, Case], kinds: Sequence[str], lanes: Sequence[int]) -> list[Row]:
    """All rows. lanes: instead of each case's own, if given."""
    rows: list[Row] = []
    for name, case in cases.items():
        widths, wanted = tuple(lanes) or case.lanes, [kind for kind in kinds if not case.only or kind in case.only]
        work: list[tuple[str, int, Callable[[], Measured]]] = []
        if "bare" in wanted:
            work.append(("bare", 1, partial(bench.trial, "bare", name, 1)))
        if "kernels" in wanted and not case.decoder:
            work += [("kernels", number, partial(bench.trial, "kernels", name, number)) for number in widths]
        if "graph" in wanted and not case.decoder and bench.device == "cuda":
            work.append(("graph", 1, partial(bench.trial, "graph", name, 1)))
        if "engine" in wanted:
            work += [("engine", number, partial(bench.engine, name, case, number)) for number in widths]
        if "flower" in wanted and case is MINILM:
            work.append(("flower", 1, bench.flower))
        for kind, number, run in work:
            rows.append(_row(case, kind, number, run))
            say(f"{case.name}, {kind}, {number} lanes: {rows[-1].outcome}")
    return rows


def _row(case: Case, kind: str, lanes: int, run: Callable[[], Measured]) -> Row:
    try:
        return Row(case, kind, lanes, run())
    except Failed as error:
        say(f"{case.name}, {kind}, {lanes} lanes: {error}")
        text = str(error)
        return Row(
            case,
            kind,
            lanes,
            "out of memory" if "out of memory" in text.lower() else f"failed: {text[-80:].replace('|', '/')}",
        )


def _output(command: Sequence[str]) -> str:
    """Run a command and return what it prints. Raises Failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"stopped after {LIMIT_S} s") from error
    if done.returncode:
        raise Failed(f"exit code {done.returncode}: {' '.join(done.stderr.split())[-600:]}")
    return done.stdout


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m fibec_ray.bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", nargs="+", choices=tuple(CASES), help="by default all")
    parser.add_argument(
        "--only", nargs="+", choices=KINDS, help="what to measure; by default all, and Flower if it is installed"
    )
    parser.add_argument("--lanes", type=int, nargs="+", default=(), help="by default 1, 8, 32, 64, and 20 for MiniLM")
    parser.add_argument("--fleet", choices=("ray", "local"), default="ray", help="kind of the runs' fleet")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of the loop and of the kernels")
    parser.add_argument("--rounds", type=int, default=4, help="measured rounds of each run")
    parser.add_argument("--short", action="store_true", help="fewer models and lanes")
    parser.add_argument("--smallest", action="store_true", help="a tiny model, to try the benchmark itself")
    parser.add_argument(
        "--peak-tflops", type=float, help="peak in bfloat16, for a GPU that bench/lanes.py does not know"
    )
    given = parser.parse_args(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --smallest tries the benchmark itself")
    if min((given.steps, given.rounds, *given.lanes)) < 1:
        parser.error("--steps, --rounds and --lanes: give 1 or more")
    return given


def about(device: str) -> str:
    """Date and machine."""
    return f"{date.today()}; {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}; {machine()}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    given = arguments(argv)
    cases: Mapping[str, Any] = SMALLEST if given.smallest else SHORT if given.short else CASES
    if given.models:
        cases = {name: case for name, case in cases.items() if name in given.models}
    if not cases:
        raise SystemExit("--models: none of them is in the table; leave out --short or --smallest")
    steps, rounds = (STEPS, 1) if given.smallest else (given.steps, given.rounds)
    kinds = given.only or [kind for kind in KINDS if kind != "flower" or is_installed("flower")]
    with tempfile.TemporaryDirectory(prefix="fibec-bench-gpu-") as folder:
        bench = Bench(given.device, given.fleet, steps, rounds, Path(folder))
        rows = measure(bench, cases, kinds, given.lanes)
    peak = peak_tflops(given.device, given.peak_tflops)
    print(f"{about(given.device)}\n\n{table(rows, peak)}\n\n{targets(rows, peak)}", flush=True)


if __name__ == "__main__":
    main()
