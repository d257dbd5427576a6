"""Commands of `fibec-ray`, each in a fork of one process that has imported everything: a third of a second apiece."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import scipy.stats  # noqa: F401  (what the forks would each import by themselves)
import sklearn.metrics  # noqa: F401
import torch
import torch._dynamo

import fibec_ray.analysis.report  # noqa: F401
import fibec_ray.cli.console  # noqa: F401
import fibec_ray.cli.job_commands  # noqa: F401
import fibec_ray.cli.prometheus  # noqa: F401
import fibec_ray.runs.begin  # noqa: F401
import fibec_ray.runs.replay  # noqa: F401
import fibec_ray.runs.verify  # noqa: F401
from fibec_ray.cli.main import main
from fibec_ray.config.load import load_experiment
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.runs.simulation import cache_dir, prepare

KILLED = -9


@dataclass(frozen=True)
class Ended:
    command: str
    code: int
    """of the process; minus the signal that ended it"""
    said: str
    """on the error stream"""

    @property
    def fault(self) -> str:
        """What is wrong with how it ended; '' if it is well, killed, or refused in one line."""
        if "Traceback" in self.said:
            return f"{self.command}: traceback: {self.said[-1500:]}"
        if self.code == 2 and (self.said.count("\n") != 1 or not self.said.startswith("fibec-ray: ")):
            return f"{self.command}: not one line: {self.said}"
        if self.code not in (0, 2, KILLED):
            return f"{self.command}: exit code {self.code}: {self.said}"
        return ""


def warm_up(config: Path) -> None:
    """Models and what they import. No training: what has run a backward pass cannot be forked."""
    os.fsync = lambda handle: None  # of this process and its forks: the machine itself does not crash here
    torch.set_num_threads(1)
    quiet_libraries()
    experiment = load_experiment(config)
    with TemporaryDirectory() as warm:
        prepared = prepare(experiment, Path(warm))
        WorkerSpec(experiment.job(prepared.answers(experiment.task)), Path(warm), cache_dir()).worker()


def command(arguments: Sequence[str], first: Callable[[], object] = lambda: None) -> Ended:
    """`fibec-ray ARGUMENTS`. first: called in its process before it begins."""
    with TemporaryDirectory() as draft:
        said = Path(draft) / "said"
        child = os.fork()
        if not child:
            run_here(arguments, first, said)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Ended(" ".join(arguments[:1]), code, said.read_text(encoding="utf-8", errors="replace"))


def run_here(arguments: Sequence[str], first: Callable[[], object], said: Path) -> None:
    """Does not return."""
    code = 1
    try:
        out, err = os.open(os.devnull, os.O_WRONLY), os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        first()
        code = main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
