"""What surrounds a run that is started from Python: callbacks, progress bar, interruptions; and how to continue one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fibec_ray.api.progress import ProgressBar, is_interactive
from fibec_ray.api.settings import overrides_of
from fibec_ray.config.experiment import Experiment
from fibec_ray.environment import prepare_libraries, quiet_warnings
from fibec_ray.errors import ConfigError
from fibec_ray.files.storage import is_url
from fibec_ray.parts.blame import blamed
from fibec_ray.runs.begin import workplace
from fibec_ray.runs.callbacks import Callback, CallbackList
from fibec_ray.runs.records import finished_digest, read_record
from fibec_ray.runs.resume import resume_record

Callbacks = Callback | Sequence[Callback]


def continue_run(path: str | Path, callbacks: Callbacks, progress: bool | None, changes: Mapping[str, Any]) -> None:
    """Continue a run from its newest checkpoint; see `Run.resume`."""
    with prepared(), workplace(str(path), True, warn) as folder:
        if finished_digest(folder) is None:
            record = read_record(folder, list(overrides_of(changes)))
            with watched(record.experiment, callbacks, progress, str(path)) as callback:
                resume_record(record, callback)


def warn(text: str) -> None:
    """Warn through Python's `warnings`, which scripts and notebooks can filter."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)


@contextmanager
def prepared() -> Iterator[None]:
    """What the command line does around a command: quiet libraries, errors of a user's own parts in one line."""
    prepare_libraries()
    with warnings.catch_warnings():
        quiet_warnings()
        warnings.filterwarnings("ignore", message="IProgress not found")  # of a widget that nothing here uses
        with blamed():
            yield


@contextmanager
def watched(experiment: Experiment, callbacks: Callbacks, progress: bool | None, where: str) -> Iterator[Callback]:
    """The caller's callbacks and the progress bar as one; an interruption says how to continue.

    Raises ConfigError for what is not a Callback.
    """
    given = several(callbacks)
    for one in given:
        if not isinstance(one, Callback):
            what = f"the class {one.__name__}; give an object, {one.__name__}()" if isinstance(one, type) else repr(one)
            raise ConfigError(
                f"callbacks: expected objects of classes that derive from fibec_ray.Callback, found {what}"
            )
    with ExitStack() as stack:
        if is_interactive() if progress is None else progress:
            given = (*given, stack.enter_context(ProgressBar(experiment)))
        try:
            yield CallbackList(*given)
        except KeyboardInterrupt as stop:
            stop.add_note(how_to_continue(where))
            raise


def several(callbacks: Callbacks) -> tuple[Callback, ...]:
    """One callback or several as a tuple. A class, given by mistake, is in it too."""
    return (callbacks,) if isinstance(callbacks, Callback | type) else tuple(callbacks)


def how_to_continue(where: str) -> str:
    """The Python line that continues an interrupted run."""
    if is_url(where) or (Path(where) / "checkpoints" / "run.json").is_file():
        return f"interrupted; continue with fibec_ray.open_run({where!r}).resume()"
    return "interrupted before the first round; start the run again"
