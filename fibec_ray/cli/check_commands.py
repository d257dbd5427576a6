"""The commands that plan a run and check it afterwards: plan, show, verify, replay."""

from __future__ import annotations

import argparse
from pathlib import Path

from fibec_ray.cli.argument_types import RUNS_SAVED_CODE, add_config, at_least_one, path
from fibec_ray.cli.parsing import Parsers

TITLE = "plan and check"


def add(parsers: Parsers) -> None:
    """Add these commands to the parser."""
    plan = parsers.add_parser("plan", help="estimate memory, disk, traffic and time before a run")
    add_config(plan)
    plan.add_argument("--out", type=path, metavar="DIR", default=Path("runs"), help="where it would run")
    plan.add_argument("--json", action="store_true", help="print plain values: bytes, seconds, operations")
    plan.set_defaults(command=_plan, prints=True)

    show = parsers.add_parser("show", help="print an experiment with all defaults filled in")
    add_config(show)
    show.set_defaults(command=_show, prints=True)

    verify = parsers.add_parser("verify", help="run some rounds again and compare them with the log")
    verify.epilog = RUNS_SAVED_CODE
    verify.add_argument("run", type=path, metavar="RUN", help="run directory; it is not changed")
    verify.add_argument("--rounds", type=at_least_one, metavar="N", default=1, help="how many (default: 1)")
    verify.add_argument(
        "--from-start", action="store_true", help="start at setup, before round 1, instead of at the oldest checkpoint"
    )
    verify.set_defaults(command=_verify)

    replay = parsers.add_parser("replay", help="run one device's round again and compare it with the log")
    replay.epilog = RUNS_SAVED_CODE
    replay.add_argument("run", type=path, metavar="RUN", help="run directory; it is not changed")
    replay.add_argument("--round", type=int, metavar="R", required=True, help="0 is before training, then 1, 2 ...")
    replay.add_argument("--device", type=int, metavar="D", required=True, help="number of the device, from 0")
    replay.set_defaults(command=_replay)


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


def _show(arguments: argparse.Namespace) -> None:
    import yaml

    from fibec_ray.config.load import load_experiment
    from fibec_ray.runs.simulation import resolved

    experiment = load_experiment(arguments.config, arguments.overrides)
    print(yaml.safe_dump(resolved(experiment), sort_keys=False), end="")
    for source in experiment.sources.values():
        print(f"# {source.name}: {source.path}, digest {source.digest}")


def _verify(arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.console import print_comparison, rounds_in_words
    from fibec_ray.runs.verify import verify

    found = verify(arguments.run, arguments.rounds, arguments.from_start)
    compared = ", ".join(f"{count} {what}" for what, count in found.compared.items() if count)
    print_comparison(f"{rounds_in_words(found.first, found.last)} run again; compared {compared}", found.differences)


def _replay(arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.console import print_comparison
    from fibec_ray.runs.replay import replay

    found = replay(arguments.run, arguments.round - 1, arguments.device)  # the log counts from -1
    for name, value in found.row.items():
        print(f"{name:28} {'-' if value is None else value}")
    print_comparison(f"device {arguments.device}, round {arguments.round} run again", found.differences)
