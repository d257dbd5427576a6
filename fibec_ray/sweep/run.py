"""Runs a sweep: each run a child process with its own run directory, finished ones skipped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fibec_ray.errors import RunError
from fibec_ray.files.run_dir import absolute
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.roundlog.schema import score_column
from fibec_ray.runs.simulation import write_settings
from fibec_ray.sweep.children import Task, run_all
from fibec_ray.sweep.folder import folder_of, is_finished, locked, refuse_other_contents, set_aside, write_record
from fibec_ray.sweep.load import Sweep, SweepRun

PROGRAM = (sys.executable, "-m", "fibec_ray")


@dataclass(frozen=True)
class Failure:
    run: SweepRun
    reason: str


def run_sweep(
    sweep: Sweep, out: Path, jobs: int, say: Callable[[str], None], program: Sequence[str] = PROGRAM
) -> list[Failure]:
    """Runs what is not finished yet, `jobs` at a time. A run that fails stops no other. Raises RunDirError.

    say: takes a line at the start and one for each run that ends. program: what is started with `run CONFIG --out DIR
    --resume`.
    """
    out = absolute(out)
    failures: list[Failure] = []
    with locked(out):
        refuse_other_contents(out, sweep)
        waiting = [run for run in sweep.runs if not is_finished(run, folder_of(run, out))]
        moved = [note for run in waiting if (note := set_aside(run, folder_of(run, out)))]
        write_record(sweep, out)
        total, done = len(sweep.runs), len(sweep.runs) - len(waiting)
        counts = f"{total} runs ({len(sweep.variants)} variants, {len(sweep.seeds)} seeds), {done} finished before"
        say("; ".join([f"{counts}; in {out}", *moved]))

        def ended(run: SweepRun, code: int, seconds: float) -> None:
            nonlocal done
            done += 1
            folder = folder_of(run, out)
            if code:
                log = folder.with_suffix(".log")
                failures.append(Failure(run, _reason(code, log)))
            says = f"FAILED, {failures[-1].reason} ({log})" if code else _scores(folder, run)
            say(f"{done}/{total} {run.label}: {says}, {seconds:.0f} s")

        run_all([_task(run, folder_of(run, out), program, partial(ended, run)) for run in waiting], jobs)
    return failures


def refuse_failures(failures: Sequence[Failure], total: int) -> None:
    """Raises RunError if there are any: what went wrong first, and what to do."""
    if failures:
        first = failures[0]
        raise RunError(
            f"{len(failures)} of {total} runs failed; {first.run.label}: {first.reason}; "
            "the same command goes on with them and keeps those that finished"
        )


def _task(run: SweepRun, folder: Path, program: Sequence[str], ended: Callable[[int, float], None]) -> Task:
    config = folder.with_suffix(".yaml")

    def prepare() -> None:
        folder.parent.mkdir(exist_ok=True)
        write_settings(run.experiment, config)

    command = [*program, "run", str(config), "--out", str(folder), "--resume"]
    return Task(prepare, command, folder.with_suffix(".log"), ended)


def _reason(code: int, log: Path) -> str:
    """'exit code 2: data.path: /no/such: no such file or folder ...', the last line that the run printed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ending = f"stopped by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{ending}: {lines[-1].removeprefix('fibec-ray: ')}" if lines else ending


def _scores(folder: Path, run: SweepRun) -> str:
    """'personal 0.812, global 0.654' after the last round"""
    last, score = read_rounds(folder).to_pylist()[-1], score_column(run.experiment.task.metric)
    scores = [(model, last[f"{model}_{score}"]) for model in ("personal", "global")]
    return ", ".join(f"{model} {value:.3f}" for model, value in scores if value is not None)
