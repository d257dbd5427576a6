"""The commands that start runs and continue them: run, resume."""

from __future__ import annotations

import argparse
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fibec_ray.cli import entry
from fibec_ray.cli.argument_types import RUNS_SAVED_CODE, add_config, path, place
from fibec_ray.cli.parsing import Parsers
from fibec_ray.errors import ConfigError

if TYPE_CHECKING:
    from fibec_ray.cli.console import RunView
    from fibec_ray.config.experiment import Experiment
    from fibec_ray.fleets.ray.local_cluster import LocalCluster
    from fibec_ray.runs.callbacks import Callback

TITLE = "run experiments"


def add(parsers: Parsers) -> None:
    """Add these commands to the parser."""
    run = parsers.add_parser("run", help="run an experiment")
    add_config(run)
    run.add_argument(
        "--out", type=place, metavar="DIR", help="run directory or its URL (default: runs/NAME, then runs/NAME-2, ...)"
    )
    run.add_argument("--resume", action="store_true", help="continue this experiment's run in --out, if there is one")
    run.set_defaults(command=_run)

    resume = parsers.add_parser("resume", help="continue a run that was stopped or failed")
    resume.epilog = RUNS_SAVED_CODE
    resume.add_argument("run", type=path, metavar="RUN", help="run directory")
    resume.add_argument("overrides", nargs="*", metavar="key=value", help="settings of fleet and checkpoint only")
    resume.set_defaults(command=_resume)


def _run(arguments: argparse.Namespace) -> None:
    from fibec_ray.runs.ahead import started_ahead

    with started_ahead(arguments.config, arguments.overrides, entry.warn) as cluster:
        _run_on(cluster, arguments)


def _run_on(cluster: LocalCluster | None, arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.console import RunView
    from fibec_ray.config.load import load_experiment
    from fibec_ray.files.run_dir import taken
    from fibec_ray.runs.begin import begin, workplace

    experiment = load_experiment(arguments.config, arguments.overrides)
    if arguments.resume and arguments.out is None:
        raise ConfigError("--resume: which run? give its --out")
    place = nullcontext(arguments.out) if arguments.out else taken(Path("runs"), experiment.name)
    with (
        place as out,
        entry.advice(lambda: _how_to_go_on(arguments, str(out))),
        workplace(str(out), arguments.resume, entry.warn) as folder,
    ):
        with RunView(experiment) as view:
            run = begin(experiment, folder, arguments.resume, _callbacks(experiment, view), cluster)
        if run is None:
            print(f"{out}: this run is finished; nothing to do")
        else:
            view.summary(run)


def _how_to_go_on(arguments: argparse.Namespace, out: str) -> str:
    from fibec_ray.files.storage import is_url

    if not is_url(out):
        return entry.how_to_resume(Path(out))
    changes = "".join(f" {shlex.quote(text)}" for text in arguments.overrides)
    config, place = shlex.quote(str(arguments.config)), shlex.quote(out)
    return f"continue with: fibec-ray run {config}{changes} --out {place} --resume"


def _callbacks(experiment: Experiment, view: RunView) -> Callback:
    """The view, and on Ray the metrics of the cluster too."""
    from fibec_ray.cli.prometheus import RunMetrics
    from fibec_ray.runs.callbacks import CallbackList

    return CallbackList(view, RunMetrics(experiment.name)) if experiment.fleet.kind == "ray" else view


def _resume(arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.console import RunView
    from fibec_ray.runs.records import finished_digest, read_record
    from fibec_ray.runs.resume import resume_record

    if (digest := finished_digest(arguments.run)) is not None:
        print(f"{arguments.run}: this run is finished (adapter {digest}); nothing to do")
        return
    record = read_record(arguments.run, arguments.overrides)
    with entry.advice(lambda: entry.how_to_resume(arguments.run)), RunView(record.experiment) as view:
        run = resume_record(record, _callbacks(record.experiment, view))
    view.summary(run)
