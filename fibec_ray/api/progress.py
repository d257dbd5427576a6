"""Progress bars for runs and sweeps that are started from Python, in terminals and notebooks."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from fibec_ray.config.experiment import Experiment
from fibec_ray.learning.run_totals import Row
from fibec_ray.roundlog.scores import score_column
from fibec_ray.runs.callbacks import Callback
from fibec_ray.types import Fleet


class _Bar(Callback):
    """A line of text, not a widget: it needs no extension, and is still there when a notebook is opened again."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._label = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def on_message(self, text: str) -> None:
        """Show a line above the bar."""
        if _in_notebook():
            print(text)  # stderr would look like a failure
        else:
            tqdm.write(text, file=sys.stderr)

    def _show(self, done: int, total: int, label: str, unit: str) -> None:
        if self._bar is None or self._label != label:
            self._close()
            self._label = label
            notebook = _in_notebook()
            file, columns = (_Cell(), 100) if notebook else (sys.stderr, None)
            self._bar = tqdm(total=total, desc=label, unit=unit, file=file, ncols=columns, ascii=False, mininterval=0.3)
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class ProgressBar(_Bar):
    """Rounds completed, the time left and the latest scores. A method's setup phase comes first, by devices."""

    def __init__(self, experiment: Experiment):
        """experiment: gives the bar its name and length."""
        super().__init__()
        self._experiment = experiment
        self._score = score_column(experiment.task.metric)

    def on_progress(self, stage: str, done: int, total: int) -> None:
        """Count the devices of the setup phase."""
        if stage == "setup":
            self._show(done, total, f"{self._experiment.name}: setup", " devices")

    def on_start(self, fleet: Fleet) -> None:
        """Begin to count rounds."""
        self._show(0, self._experiment.rounds, self._experiment.name, " rounds")

    def on_round_end(self, row: Row) -> None:
        """Count a round, and show its scores if it was evaluated."""
        if row["round"] < 0:
            return
        self._show(row["round"] + 1, self._experiment.rounds, self._experiment.name, " rounds")
        if scores := scores_in(row, self._score):
            self._bar.set_postfix(scores)


class SweepBar(_Bar):
    """Runs completed, the run that is going on and its round."""

    def __init__(self, total: int, shown: bool):
        """total: number of runs. shown: False for a silent one."""
        super().__init__()
        self._total, self._shown = total, shown

    def say(self, line: str) -> None:
        """Show a line about the sweep; '3/6 fedavg, seed 1: ...' counts the runs completed."""
        if self._shown:
            self.on_message(line)
            done = line.partition("/")[0]
            self._show(int(done) if done.isdecimal() else 0, self._total, "sweep", " runs")

    def on_round_end(self, row: Row) -> None:
        """Show how far the run is."""
        if self._shown and self._bar is not None:
            self._bar.set_postfix(rounds=row["round"] + 1)

    def on_message(self, text: str) -> None:
        """Show a line above the bar."""
        if self._shown:
            super().on_message(text)


def scores_in(row: Row, score: str) -> dict[str, str]:
    """The test scores of an evaluated round by model; {} for other rounds."""
    found = {model: row[f"{model}_{score}"] for model in ("global", "personal")}
    return {model: f"{value:.3f}" for model, value in found.items() if value is not None}


def is_interactive() -> bool:
    """True in a notebook, and where stderr is a terminal."""
    return _in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


class _Cell:
    """A stream for tqdm that shows the newest line in the output of a notebook's cell, in place of the one before.

    The saved notebook has the last line only, which every viewer can show.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    def write(self, text: str) -> None:
        """Show a line, unless it is there to erase another one."""
        if line := text.strip():
            display = sys.modules["IPython"].display.display
            if self._handle is None:
                self._handle = display({"text/plain": line}, raw=True, display_id=True)
            else:
                self._handle.update({"text/plain": line}, raw=True)

    def flush(self) -> None:
        """Nothing is buffered."""
