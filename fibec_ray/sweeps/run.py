"""Runs a sweep, each run in its own run directory: in child processes or in this one. Finished runs are skipped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from fibec_ray.data.splits import nearest_file
from fibec_ray.errors import DataError, FibecError, RunError
from fibec_ray.files.run_dir import absolute
from fibec_ray.files.storage import is_url
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.roundlog.scores import score_column
from fibec_ray.runs.begin import begin
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.simulation import write_settings
from fibec_ray.sweeps.children import Task, run_all
from fibec_ray.sweeps.folder import folder_of, is_finished, locked, refuse_other_contents, set_aside, write_record
from fibec_ray.sweeps.plan import Failure, SweepPlan, SweepRun
from fibec_ray.sweeps.tune import tuned
from fibec_ray.sweeps.tuning import FOLDER

PROGRAM = (sys.executable, "-m", "fibec_ray")


Ended = Callable[[SweepRun, str, float], None]
"""Called after each run with the reason why it failed ('' if it finished) and the seconds that it took."""
Execute = Callable[[Sequence[SweepRun], Path, Ended], None]
"""Runs some runs of a sweep in its folder."""


def run_sweep(
    sweep: SweepPlan, out: Path, jobs: int, say: Callable[[str], None], program: Sequence[str] = PROGRAM
) -> list[Failure]:
    """Run what has not finished yet, `jobs` child processes at a time. A run that fails stops no other.

    say: gets one line at the start and one for each run that ends. program: the command that children are started
    with, before `run CONFIG --out DIR --resume`. Raises RunDirError if `out` holds anything else.
    """

    def execute(waiting: Sequence[SweepRun], out: Path, ended: Ended) -> None:
        run_all([_task(run, folder_of(run, out), program, ended) for run in waiting], jobs)

    return _run(sweep, out, say, execute)


def run_here(
    sweep: SweepPlan,
    out: Path,
    say: Callable[[str], None],
    watch: Callable[[SweepRun, Path], AbstractContextManager[Callback]],
) -> list[Failure]:
    """Run what has not finished yet in this process, one run after the other. A run that fails stops no other.

    watch: opens the callback of a run, given its folder. Raises RunDirError if `out` holds anything else.
    """

    def execute(waiting: Sequence[SweepRun], out: Path, ended: Ended) -> None:
        for run in waiting:
            folder, started, reason = folder_of(run, out), time.monotonic(), ""
            _write_config(run, folder)
            try:
                with watch(run, folder) as callback:
                    begin(run.experiment, folder, resume=True, callback=callback)
            except FibecError as error:
                reason = str(error)
            ended(run, reason, time.monotonic() - started)

    return _run(sweep, out, say, execute)


def _run(sweep: SweepPlan, out: Path, say: Callable[[str], None], execute: Execute) -> list[Failure]:
    """Tune first, if the sweep has anything to tune; then run."""
    shown, out = out, absolute(out)
    with locked(out):
        refuse_other_contents(out, sweep)
        failures: list[Failure] = []
        for note in sweep.notes:
            say(note)
        if sweep.tuning:

            def run_all(runs: SweepPlan, folder: Path) -> list[Failure]:
                return _run_all(runs, folder, shown / folder.name, lambda line: say(f"tuning: {line}"), execute)

            sweep, failures = tuned(sweep, out, say, run_all)
        return failures + _run_all(sweep, out, shown, say, execute)


def _run_all(sweep: SweepPlan, out: Path, shown: Path, say: Callable[[str], None], execute: Execute) -> list[Failure]:
    """Run what has not finished yet. shown: the folder, for messages."""
    failures: list[Failure] = []
    waiting = [run for run in sweep.runs if not is_finished(run, folder_of(run, out))]
    moved = [note for run in waiting if (note := set_aside(run, folder_of(run, out)))]
    write_record(sweep, out)
    total, done = len(sweep.runs), len(sweep.runs) - len(waiting)
    parts = f"{_count(len(sweep.variants), 'variant')}, {_count(len(sweep.seeds), 'seed')}"
    say("; ".join([f"{_count(total, 'run')} ({parts}), {done} finished before; in {shown}", *moved]))
    started, before = time.monotonic(), done

    def ended(run: SweepRun, reason: str, seconds: float) -> None:
        nonlocal done
        done += 1
        if reason:
            failures.append(Failure(run, reason, sweep.task))
        log = folder_of(run, out).with_suffix(".log")  # of a child process
        failed = f"FAILED, {reason} ({log})" if log.exists() else f"FAILED, {reason}"
        result = failed if reason else _scores(folder_of(run, out), run)
        left = time_left(time.monotonic() - started, done - before, total - done)
        say(f"{done}/{total} {run.label}: {result}, {seconds:.0f} s{left}")

    execute(waiting, out, ended)
    return failures


def time_left(seconds: float, ended: int, waiting: int) -> str:
    """'; about 12 min left' after some runs have ended in so many seconds; '' if it is less than a minute."""
    minutes = round(seconds / ended * waiting / 60)
    return f"; about {minutes} min left" if minutes else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def refuse_missing_data(sweeps: Mapping[str, SweepPlan], out: Path) -> None:
    """Raise DataError if a run that has not finished needs a local file or folder that is not there.

    sweeps: by task. A sweep over tasks would otherwise find out hours later.
    """
    for task, sweep in sweeps.items():
        waiting = _to_run(sweep, absolute(out) / task)
        for path in dict.fromkeys(run.experiment.data.path for run in waiting):
            if path is not None and not is_url(path) and not (local := Path(path).expanduser()).exists():
                where = f"{task}: " if task else ""
                raise DataError(f"{where}data.path: {path}: no such file or folder; {nearest_file(local)}")


def _to_run(sweep: SweepPlan, out: Path) -> list[SweepRun]:
    """Runs that have not finished. Whether a tuned one has is unknown before tuning, so its folder decides."""
    if not sweep.tuning:
        return [run for run in sweep.runs if not is_finished(run, folder_of(run, out))]
    tuning = [run for run in sweep.tuning.runs.runs if not is_finished(run, folder_of(run, out / FOLDER))]
    return [*tuning, *(run for run in sweep.runs if not folder_of(run, out).exists())]


def refuse_failures(failures: Sequence[Failure], total: int) -> None:
    """Raise RunError if any run failed, with the first reason and what to do."""
    if failures:
        first = failures[0]
        raise RunError(
            f"{len(failures)} of {total} runs failed; {first.label}: {first.reason}; "
            "run the sweep again to retry them; finished runs are kept"
        )


def _task(run: SweepRun, folder: Path, program: Sequence[str], ended: Ended) -> Task:
    log = folder.with_suffix(".log")
    command = [*program, "run", str(folder.with_suffix(".yaml")), "--out", str(folder), "--resume"]

    def exited(code: int, seconds: float) -> None:
        ended(run, _reason(code, log) if code else "", seconds)

    return Task(partial(_write_config, run, folder), command, log, exited)


def _write_config(run: SweepRun, folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    write_settings(run.experiment, folder.with_suffix(".yaml"))


def _reason(code: int, log: Path) -> str:
    """The exit code and the last line that the run printed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ending = f"stopped by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{ending}: {lines[-1].removeprefix('fibec-ray: ')}" if lines else ending


def _scores(folder: Path, run: SweepRun) -> str:
    """The scores after the last round: 'personal 0.812, global 0.654'."""
    last, score = read_rounds(folder).to_pylist()[-1], score_column(run.experiment.task.metric)
    scores = [(model, last[f"{model}_{score}"]) for model in ("personal", "global")]
    return ", ".join(f"{model} {value:.3f}" for model, value in scores if value is not None)
