"""Runs the tuning runs of a sweep, and gives the sweep the values that they choose. Called by run.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fibec_ray.sweeps.choice import Choice, choices_of, table
from fibec_ray.sweeps.folder import folder_of, is_finished, write_record
from fibec_ray.sweeps.plan import Failure, SweepPlan, Tuning
from fibec_ray.sweeps.tuned_file import RECORD as TUNED
from fibec_ray.sweeps.tuned_record import failed_before, write_tuned
from fibec_ray.sweeps.tuning import FOLDER, with_values

RunAll = Callable[[SweepPlan, Path], list[Failure]]
"""Runs what has not finished of a sweep, in its folder."""


def tuned(sweep: SweepPlan, out: Path, say: Callable[[str], None], run_all: RunAll) -> tuple[SweepPlan, list[Failure]]:
    """The sweep with the chosen values, and a failure for each run of a variant that has none.

    Tuning runs that have finished are kept. Writes OUT/tuned.yaml. Raises RunDirError.
    """
    tuning, folder = sweep.tuning, out / FOLDER
    assert tuning is not None
    for run in tuning.runs.runs:
        is_finished(run, folder_of(run, folder))  # refuses a folder of another experiment before anything is written
    skipped = failed_before(out, tuning)
    write_record(sweep, out)
    folder.mkdir(exist_ok=True)
    for note in tuning.notes:
        say(f"note: {note}")
    if skipped:
        names = ", ".join(sorted(skipped))
        say(f"tuning: runs that failed before are not tried again: {names}; to try them, remove {TUNED}")
    waiting = tuple(run for run in tuning.runs.runs if run.variant.name not in skipped)
    failures = run_all(replace(tuning.runs, runs=waiting), folder)
    choices = choices_of(tuning, folder)
    write_tuned(out, tuning, choices)
    for choice in choices.values():
        say(_line(choice))
    return with_choices(sweep, tuning, choices), _without_choice(sweep, tuning, choices, failures)


def tuned_table(tuning: Tuning, out: Path, width: int | None = None) -> str:
    """The table of choices, from the finished runs in OUT/tuning. width: characters of the terminal; None: any."""
    takes = {name: other for name, other in tuning.source.items() if name != other}
    return table(list(choices_of(tuning, out / FOLDER).values()), takes, tuning.runs.seeds[0], width)


def with_choices(sweep: SweepPlan, tuning: Tuning, choices: dict[str, Choice]) -> SweepPlan:
    """The sweep with chosen values, without the runs of variants that have none."""
    chosen = {name: choices[other].chosen for name, other in tuning.source.items()}
    lost = {name for name, one in chosen.items() if one is None}
    values = {name: one.overrides for name, one in chosen.items() if one}
    found = with_values(sweep, tuning, values, str(sweep.path))
    return replace(found, runs=tuple(run for run in found.runs if run.variant.name not in lost))


def _without_choice(
    sweep: SweepPlan, tuning: Tuning, choices: dict[str, Choice], failures: list[Failure]
) -> list[Failure]:
    """A failure for each run of a variant whose tuning runs all failed."""
    reasons = {failure.run.variant.group: failure.reason for failure in reversed(failures)}
    found = []
    for run in sweep.runs:
        other = tuning.source.get(run.variant.name)
        if other is not None and (choice := choices[other]).chosen is None:
            why = reasons.get(other, "their training diverged")
            reason = f"all {len(choice.tried)} tuning runs of {other} failed ({why}); change its values under `tune`"
            found.append(Failure(run, reason, sweep.task))
    return found


def _line(choice: Choice) -> str:
    """One line about a choice, for the terminal."""
    best = choice.chosen
    if best is None:
        return f"tuned {choice.variant}: no value, because all of its {len(choice.tried)} tuning runs failed"
    score = dict(choice.tried)[best]
    edge = "; at the edge of the values" if choice.at_edge else ""
    return f"tuned {choice.variant}: {' '.join(best.overrides)} ({choice.what} {score:.4f}{edge})"
