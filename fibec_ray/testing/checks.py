"""The checks of one part: its fields, and runs of small experiments with it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError, FibecError, ModelError, round_name
from fibec_ray.method import AXES, Method
from fibec_ray.parts.blame import what_failed
from fibec_ray.parts.part import Part, contract_of
from fibec_ray.preflight.check import foresee
from fibec_ray.roundlog.reader import log_digest, read_devices
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import Finished, cache_dir, prepare, resolved, simulate
from fibec_ray.testing import tiny

OPERATIONS = 0.05
"""Relative difference between planned and counted operations that the plan may have."""


class Broken(Exception):
    """A check failed; the message says what the part does wrong."""


class Skipped(Exception):
    """Why a check does not apply."""


def expect(kept: bool, otherwise: str) -> None:
    """Raise Broken with a message unless the condition holds."""
    if not kept:
        raise Broken(otherwise)


class Plug(Callback):
    """Makes a run fail after some device-rounds, counted over all rounds; None: never."""

    def __init__(self, after: int | None = None):
        self.after, self.done = after, 0

    def on_progress(self, stage: str, done: int, total: int) -> None:
        if stage != "train":
            return
        if self.after is not None and self.done + done >= self.after:
            raise ConnectionError("the plug was pulled")
        self.done += total if done == total else 0


def stopped(experiment: Experiment, folder: Path, after: int) -> Path:
    """Start a run that fails after some device-rounds, and return its folder."""
    with suppress(ConnectionError):
        simulate(experiment, folder, Plug(after))
        raise AssertionError("the run came to its end")
    return folder


def axis_of(part: type[Part]) -> str:
    """The axis whose contract a class derives from."""
    return next(axis for axis, registry in AXES.items() if issubclass(part, contract_of(registry)))


@dataclass
class Trial:
    """The part to check, other parts to combine it with, and the folder for runs."""

    part: type[Part]
    beside: Mapping[str, Any]
    folder: Path
    _runs: dict[str, Finished] = field(default_factory=dict)

    def experiment(self, where: str) -> Experiment:
        """A small experiment with the part. Raises Skipped if the part does not fit it."""
        kind = self.part.model_fields["kind"].default
        try:
            return tiny.experiment(where, {**self.part.usual_partners(), **self.beside, axis_of(self.part): kind})
        except ConfigError as error:
            raise Skipped(str(error)) from error

    def accepted(self) -> Experiment:
        """The first small experiment that the part fits. Raises Broken if there is none."""
        reasons = []
        for where in tiny.PLACES:
            try:
                return self.experiment(where)
            except Skipped as reason:
                reasons.append(str(reason))
        raise Broken(f"{reasons[0]}; add the other parts that it needs, such as sharing=body")

    @property
    def place(self) -> str:
        """Name of the first small experiment that finished. Raises Skipped if none has."""
        if not self._runs:
            raise Skipped("no small experiment with the part finished")
        return next(iter(self._runs))

    def run(self, where: str) -> Finished:
        """The finished run of a small experiment. Raises Skipped if the part does not fit it."""
        if where not in self._runs:
            try:
                self._runs[where] = simulate(self.experiment(where), self.folder / where)
            except (ConfigError, ModelError) as error:
                raise Skipped(str(error)) from error
        return self._runs[where]


def fields(trial: Trial) -> str:
    """Check that the part has defaults, a docstring, frozen fields, and survives a round trip through JSON."""
    part = trial.part
    missing = [name for name, field in part.model_fields.items() if field.is_required()]
    expect(not missing, f"{', '.join(missing)}: give it a default, so that the kind alone names the part")
    expect(bool(part.__doc__), "it has no docstring; say in its first line what it does")
    config = part.model_config
    expect(config.get("frozen") is True and config.get("extra") == "forbid", "leave frozen and extra as Part sets them")
    method = trial.accepted().method
    expect(Method.model_validate_json(method.model_dump_json()) == method, "its fields are not the same after JSON")
    return "has defaults, is frozen, is the same after JSON"


def works(trial: Trial, where: str) -> str:
    """Check that no update is quarantined, all numbers are finite, and a second run gives the same bits."""
    run = trial.run(where)
    reasons = [reason for reason in read_devices(run.folder).column("quarantined").to_pylist() if reason]
    expect(not reasons, f"the server quarantined a device's update: {next(iter(reasons), '')}")
    numbers = [row[key] for row in run.rows for key in ("train_loss", "global_loss", "personal_loss")]
    expect(all(math.isfinite(value) for value in numbers if value is not None), "a loss is not finite")
    for path in sorted((run.folder / "checkpoints" / "devices").rglob("*.safetensors")):
        bad = [
            name for name, value in load_file(path).items() if value.is_floating_point() and not value.isfinite().all()
        ]
        expect(not bad, f"a device remembers numbers that are not finite: {', '.join(bad)}")
    torch.rand(1), random.random(), np.random.rand()  # a part that draws from these has another state the second time
    again = result(simulate(trial.experiment(where), trial.folder / f"{where}-again"))
    expect(
        again == result(run),
        "two runs of one experiment differ; draw from the generator that a hook is given, and keep nothing in globals",
    )
    return f"{len(run.rows) - 1} rounds, twice with the same bits"


def planned(trial: Trial) -> str:
    """Check that planned bytes are exact, and planned operations within 5 %, in the setup phase and every round."""
    run, experiment = trial.run(trial.place), trial.experiment(trial.place)
    outlook = foresee(experiment, prepare, trial.folder / "plan", cache_dir())
    sent, work, worst = outlook.traffic, outlook.work, 0.0
    bytes_up, bytes_down = (sent.setup_up, *sent.rounds_up), (sent.setup_down, *sent.rounds_down)
    for row, up, down, flops in zip(
        run.rows, bytes_up, bytes_down, (work.setup_flops, *work.rounds_flops), strict=True
    ):
        where = round_name(row["round"])
        expect(up == row["bytes_up"], f"{where}: {up:,} B up were planned, {row['bytes_up']:,} B were sent")
        expect(down == row["bytes_down"], f"{where}: {down:,} B down were planned, {row['bytes_down']:,} B were sent")
        off = abs(flops - row["flops"]) / (row["flops"] or 1)
        expect(
            off <= OPERATIONS,
            f"{where}: {flops:.4g} operations were planned, {row['flops']:.4g} were counted; `passes` declares what "
            "a hook computes itself (outside torch.no_grad a forward pass counts with its backward pass)",
        )
        worst = max(worst, off)
    return f"bytes to the byte, operations within {100 * worst:.1f} %"


def resumed(trial: Trial) -> str:
    """Stop a run in the middle of the third round, resume it, and compare with the run that was not stopped."""
    where = trial.place
    experiment = trial.experiment(where)
    folder = stopped(experiment, trial.folder / f"{where}-stopped", 2 * experiment.cohort_size + 1)
    run = resume(folder)
    assert run is not None
    expect(result(run) == result(trial.run(where)), "a run that was stopped and resumed ends with another model or log")
    return "stopped in round 2 and resumed: the same bits"


def on_ray(trial: Trial) -> str:
    """Run on two Ray actors and compare with the run in one process."""
    where = trial.place
    fleet = {"kind": "ray", "placement": "pooled", "num_actors": 2}
    experiment = check({**resolved(trial.experiment(where)), "fleet": fleet}, where)
    run = simulate(experiment, trial.folder / f"{where}-ray")
    expect(result(run) == result(trial.run(where)), "two actors end with another model or log than one process")
    return "two actors, the same bits as one process"


def result(run: Finished | None) -> tuple[str, str, int]:
    """Values that are equal for equal runs."""
    assert run is not None
    return run.adapter_digest, log_digest(run.folder), len(run.rows)


def verdicts(part: type[Part], beside: Mapping[str, Any], folder: Path, ray: bool) -> Iterator[tuple[str, str, str]]:
    """Run all checks. Yields each check's name, `ok`, `FAILED` or `skipped`, and a message."""
    trial = Trial(part, beside, folder / part.__name__)
    checks = {"fields": partial(fields, trial)}
    checks |= {where: partial(works, trial, where) for where in tiny.PLACES}
    checks |= {"plan": partial(planned, trial), "resume": partial(resumed, trial)}
    checks |= {"ray": partial(on_ray, trial)} if ray else {}
    said = set[str]()
    for name, run in checks.items():
        try:
            verdict, text = "ok", run()
        except Skipped as reason:
            nowhere = name == "plan" and "FAILED" not in said  # no experiment has tried the part
            verdict, text = ("FAILED" if nowhere else "skipped"), str(reason)
        except (Exception, SystemExit) as error:
            verdict, text = "FAILED", _reason(error)
        said.add(verdict)
        yield name, verdict, text


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) if isinstance(error, Broken | FibecError) else what_failed(error)
