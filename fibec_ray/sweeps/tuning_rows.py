"""Keeps tuning away from the test rows of the sweep. Called by tuning.py, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from fibec_ray.config.experiment import Experiment
from fibec_ray.errors import ConfigError, DataError
from fibec_ray.sweeps.plan import SweepRun
from fibec_ray.tasks.base import Splits, Task

WITH_SPLITS = (
    "add data.eval_split=validation if there is such a split, or task.eval_split=null to hold out a fifth of the "
    "training rows"
)
WITH_FILES = "add data.test=FILE with other rows to choose values on"


def about_rows(tuned: Sequence[SweepRun], runs: Sequence[SweepRun], where: str) -> tuple[str, ...]:
    """Notes about the rows that tuning runs are scored on.

    Raises ConfigError for settings of `data` without effect, and for tuning runs that train on the sweep's test rows or
    are scored on them.
    """
    finals = {run.variant.name: run.experiment for run in runs}
    notes = dict[str, None]()
    for run in tuned:
        try:
            task = run.experiment.task.effective(run.experiment.data)
        except DataError as error:
            raise ConfigError(f"{where}: {run.variant.name}: {error}") from error
        final = finals.get(run.variant.group)
        if final is not None and task.splits is not None:
            _refuse_test_rows(run.experiment, task.splits, final, f"{where}: {run.variant.name}")
        if final is not None and (note := _note(task, final)):
            notes[note] = None
    return tuple(notes)


def _refuse_test_rows(tuned: Experiment, splits: Splits, final: Experiment, where: str) -> None:
    other = final.task.effective(final.data).splits
    if other is None or tuned.data.path != final.data.path:
        return
    scored, tested = _test_rows(tuned, splits), _test_rows(final, other)
    if tested is None:
        return  # held out anew for each seed
    if scored == tested:
        advice = WITH_FILES if tuned.data.test else WITH_SPLITS
        raise ConfigError(f"{where}: would be scored on the test rows of the sweep ({tested}); {advice}")
    if not tuned.data.train and tested in [f"split {name}" for name in splits.train]:
        raise ConfigError(f"{where}: would train on the test rows of the sweep ({tested}); set data.train_splits too")


def _test_rows(experiment: Experiment, splits: Splits) -> str | None:
    """Where the test rows come from; None if some of the training rows are held out."""
    if experiment.data.test:
        return f"data.test={experiment.data.test}"
    return None if splits.test is None else f"split {splits.test}"


def _note(task: Task, final: Experiment) -> str:
    other = final.task.effective(final.data).splits
    held_out = other is not None and _test_rows(final, other) is None
    if held_out or (task.splits is None and task.embedded is None):
        return (
            f"task {task.name}: test rows are drawn anew for each seed, so some of those that values are chosen on are "
            "test rows of the sweep; a separate test set avoids this"
        )
    return ""
