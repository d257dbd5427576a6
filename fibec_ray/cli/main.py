"""The `fibec-ray` command: run, plan, resume, verify, report ... Thin; heavy imports come after parsing."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fibec_ray.cli import entry
from fibec_ray.cli.argument_types import RUNS_CODE, add_config, add_runs, at_least_one, path, place
from fibec_ray.errors import ConfigError

if TYPE_CHECKING:
    from fibec_ray.cli.console import RunView
    from fibec_ray.config.experiment import Experiment
    from fibec_ray.runs.callbacks import Callback


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes are those of entry.run."""
    if argv is None:
        entry.speak_utf8()
    return entry.run(partial(_parse, argv))


KEPT_CODE = "Runs the Python files in RUN/parts, if the run has parts of somebody's own."


class _Parser(argparse.ArgumentParser):
    """In one colour: newer Pythons write control sequences into help."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.color = False


def _refuse_secrets(arguments: argparse.Namespace) -> None:
    """Before anything is opened, printed or written."""
    from fibec_ray.files.storage import refuse_secrets

    for name in ("config", "folder", "sweep", "run", "out", "figures", "dest"):
        refuse_secrets(
            getattr(arguments, name, None), f"--{name}" if name in ("out", "figures", "dest") else name.upper()
        )
    for run in getattr(arguments, "runs", None) or ():
        refuse_secrets(run, "RUN")
    for key, _, value in (text.partition("=") for text in getattr(arguments, "overrides", None) or ()):
        for text in re.split(r"[\[\]{}'\",\s]+", value):
            refuse_secrets(text, key)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse stops collecting overrides at the first option; those that come after it are collected here."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if text.startswith("-") or not hasattr(arguments, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    _refuse_secrets(arguments)
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fibec-ray", description="Simulate federated LoRA fine-tuning on Ray.")
    parser.set_defaults(prints=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run an experiment")
    add_config(run)
    run.add_argument(
        "--out", type=place, metavar="DIR", help="run directory, or its URL (default: runs/NAME, then runs/NAME-2 ...)"
    )
    run.add_argument("--resume", action="store_true", help="go on with the run of this experiment in --out, if any")
    run.set_defaults(command=_run)

    plan = commands.add_parser("plan", help="say what an experiment will take: memory, disk, bytes sent, work, time")
    add_config(plan)
    plan.add_argument("--out", type=path, metavar="DIR", default=Path("runs"), help="where it would run")
    plan.add_argument("--json", action="store_true", help="print plain values: bytes, seconds, operations")
    plan.set_defaults(command=_plan, prints=True)

    resume = commands.add_parser("resume", help="go on with a run that was killed or failed")
    resume.epilog = KEPT_CODE
    resume.add_argument("run", type=path, metavar="RUN", help="run directory")
    resume.add_argument("overrides", nargs="*", metavar="key=value", help="of fleet and checkpoint only")
    resume.set_defaults(command=_resume)

    verify = commands.add_parser("verify", help="run some rounds again and compare them with the round log")
    verify.epilog = KEPT_CODE
    verify.add_argument("run", type=path, metavar="RUN", help="run directory; it is only read")
    verify.add_argument("--rounds", type=at_least_one, metavar="N", default=1, help="how many (default: 1)")
    verify.add_argument(
        "--from-start",
        action="store_true",
        help="the first ones, instead of those after the oldest checkpoint in reach",
    )
    verify.set_defaults(command=_verify)

    replay = commands.add_parser("replay", help="run one device-round again, alone, and compare it with the round log")
    replay.epilog = KEPT_CODE
    replay.add_argument("run", type=path, metavar="RUN", help="run directory; it is only read")
    replay.add_argument("--round", type=int, metavar="R", required=True, help="-1 is the initialisation phase")
    replay.add_argument("--device", type=int, metavar="D", required=True)
    replay.set_defaults(command=_replay)

    show = commands.add_parser("show", help="print an experiment with all defaults filled in")
    add_config(show)
    show.set_defaults(command=_show, prints=True)

    methods = commands.add_parser("methods", help="print the table of methods, and of parts that are not built in")
    methods.epilog = RUNS_CODE
    methods.add_argument(
        "files", nargs="*", type=path, metavar="FILE", help="list your own too: methods (YAML) and parts (Python)"
    )
    methods.set_defaults(command=_methods, prints=True)

    report = commands.add_parser("report", help="draw runs into one HTML page, and into figures for a paper")
    add_runs(report)
    report.add_argument("--out", type=path, metavar="FILE", help="page (default: RUN/report.html, or report.html)")
    report.add_argument("--figures", type=path, metavar="DIR", help="write every figure there too, as PNG and SVG")
    report.set_defaults(command=_report)

    export = commands.add_parser("export", help="write a run's round log for another tool to show")
    export.add_argument("run", type=path, metavar="RUN", help="run directory")
    export.add_argument("--to", choices=("tensorboard", "wandb", "mlflow"), required=True)
    export.add_argument(
        "--dest", type=place, metavar="PLACE", help="folder, or MLflow's tracking URI (default: in RUN)"
    )
    export.set_defaults(command=_export)

    watch = commands.add_parser("watch", help="look on at a run that is being written, until it ends")
    watch.add_argument("run", type=path, metavar="RUN", help="run directory")
    watch.set_defaults(command=_watch, prints=True)

    compare = commands.add_parser("compare", help="print the tables of a paper: scores, costs to a target, differences")
    _add_compare(compare)

    runs = commands.add_parser("runs", help="list the runs in a folder: status, progress, best score")
    runs.add_argument("folder", nargs="?", type=path, metavar="DIR", default=Path("runs"), help="default: runs")
    runs.set_defaults(command=_runs, prints=True)

    sweep = commands.add_parser("sweep", help="run every variant and seed of a sweep, then print its table")
    add_config(sweep, "SWEEP", "sweep, a YAML file; or an experiment, with several values for some keys (method=a,b)")
    sweep.add_argument("--out", type=path, metavar="DIR", required=True, help="sweep directory; finished runs are kept")
    sweep.add_argument("--jobs", type=at_least_one, metavar="N", default=1, help="runs at a time (default: 1)")
    sweep.set_defaults(command=_sweep)

    table = commands.add_parser("sweep-table", help="compare a sweep's finished runs: DIR/table.md and DIR/table.csv")
    table.add_argument("sweep", type=path, metavar="DIR", help="sweep directory")
    table.add_argument("--last", type=at_least_one, metavar="N", default=3, help="evaluations in a score (default: 3)")
    table.set_defaults(command=_sweep_table)

    from fibec_ray.cli.job_commands import add_commands

    add_commands(commands)
    return parser


def _add_compare(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    parser.add_argument("--reference", metavar="NAME", help="whom to compare with (default: the sweep's, or the first)")
    parser.add_argument("--target", type=float, action="append", metavar="X", help="score to get to; may be repeated")
    parser.add_argument("--model", choices=("personal", "global"), help="whose score (default: personal, if there is)")
    parser.add_argument("--last", type=at_least_one, metavar="N", default=3, help="evaluations in a score (default: 3)")
    parser.add_argument("--format", choices=("markdown", "csv", "latex"), default="markdown", help="of what is printed")
    parser.add_argument("--out", type=path, metavar="DIR", help="write compare.md, compare.tex and CSVs there too")
    parser.add_argument("--anyway", action="store_true", help="even if data, partition or model differ")
    parser.set_defaults(command=_compare, prints=True)


def _run(arguments: argparse.Namespace) -> None:
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
            run = begin(experiment, folder, arguments.resume, _callbacks(experiment, view))
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
    return f"go on with: fibec-ray run {config}{changes} --out {place} --resume"


def _callbacks(experiment: Experiment, view: RunView) -> Callback:
    """On Ray, the cluster's metrics look on beside the person."""
    from fibec_ray.cli.prometheus import RunMetrics
    from fibec_ray.runs.callbacks import CallbackList

    return CallbackList(view, RunMetrics(experiment.name)) if experiment.fleet.kind == "ray" else view


def _plan(arguments: argparse.Namespace) -> None:
    import json

    from fibec_ray.cli.plan_page import as_json, show
    from fibec_ray.cli.terminal import make_console
    from fibec_ray.config.load import load_experiment
    from fibec_ray.files.run_dir import absolute
    from fibec_ray.models.process_state import quiet_libraries
    from fibec_ray.preflight.check import foresee
    from fibec_ray.preflight.refusal import refuse
    from fibec_ray.runs.simulation import cache_dir, prepare

    experiment = load_experiment(arguments.config, arguments.overrides)
    quiet_libraries()
    outlook = foresee(experiment, prepare, absolute(arguments.out), cache_dir())
    if arguments.json:
        print(json.dumps(as_json(outlook), indent=2))
    else:
        show(outlook, make_console())
    refuse(outlook.plan)


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


def _verify(arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.console import print_comparison, rounds_in_words
    from fibec_ray.runs.verify import verify

    found = verify(arguments.run, arguments.rounds, arguments.from_start)
    compared = ", ".join(f"{count} {what}" for what, count in found.compared.items() if count)
    print_comparison(f"{rounds_in_words(found.first, found.last)} run again; compared {compared}", found.differences)


def _replay(arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.console import print_comparison
    from fibec_ray.runs.replay import replay

    found = replay(arguments.run, arguments.round, arguments.device)
    for name, value in found.row.items():
        print(f"{name:28} {'-' if value is None else value}")
    print_comparison(f"device {arguments.device}, round {arguments.round} run again", found.differences)


def _show(arguments: argparse.Namespace) -> None:
    import yaml

    from fibec_ray.config.load import load_experiment
    from fibec_ray.runs.simulation import resolved

    experiment = load_experiment(arguments.config, arguments.overrides)
    print(yaml.safe_dump(resolved(experiment), sort_keys=False), end="")
    for source in experiment.method.sources.values():
        print(f"# {source.name}: {source.path}, digest {source.digest}")


def _methods(arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.method_table import method_table, own_parts, part_table
    from fibec_ray.config.load import load_method, method_files

    python = [file for file in arguments.files if file.suffix == ".py"]
    yaml = [file for file in arguments.files if file.suffix != ".py"]
    methods = [(file.stem, load_method(file)) for file in [*method_files(), *yaml]]
    parts = own_parts(python, [method for _, method in methods])
    method_table(methods)
    part_table(parts)


def _report(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.report import write_report

    print(write_report(arguments.runs, arguments.out, arguments.figures))


def _compare(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.compare import Choices, compare_runs, write_all, written
    from fibec_ray.cli.terminal import screen_width

    targets = tuple(arguments.target or ())
    choices = Choices(arguments.reference, targets, arguments.model, arguments.last, arguments.anyway)
    tables = compare_runs(arguments.runs, choices)
    if arguments.out:
        write_all(tables, arguments.out)
    print(written(tables, arguments.format, screen_width()), end="")


def _runs(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.listing import listing
    from fibec_ray.cli.terminal import screen_width

    print(listing(arguments.folder, screen_width()))


def _export(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.export import export

    print(export(arguments.run, arguments.to, arguments.dest))


def _watch(arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.watch import watch

    watch(arguments.run)


def _sweep(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.sweep_table import write_table
    from fibec_ray.cli.terminal import screen_width
    from fibec_ray.sweep.load import load_sweep
    from fibec_ray.sweep.run import refuse_failures, run_sweep

    sweep = load_sweep(arguments.config, arguments.overrides)
    with entry.advice(lambda: "the same command goes on with this sweep"):
        failures = run_sweep(sweep, arguments.out, arguments.jobs, lambda line: print(line, flush=True))
    print(write_table(arguments.out, width=screen_width()), end="", flush=True)
    refuse_failures(failures, len(sweep.runs))


def _sweep_table(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.sweep_table import write_table
    from fibec_ray.cli.terminal import screen_width

    print(write_table(arguments.sweep, arguments.last, screen_width()), end="")
