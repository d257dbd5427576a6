"""Walks every file operation of a run, and of one that is resumed, and has each of them fail in every way.

The result must equal the undisturbed run, bit for bit. Called by harness.py.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs.forks import KILLED, Ended, command
from runs.operations import APPLIES, FAULTS, Operations

from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.records import finished_digest


@dataclass(frozen=True)
class Crash:
    what: str
    """the command that is disturbed: run, or resume"""
    fault: str
    at: int
    operation: str

    def __str__(self) -> str:
        return f"{self.fault} at operation {self.at} of {self.what} ({self.operation})"


def walk(home: Path, sample: str) -> Found:
    """home: has run.yaml. sample: 'all', or 'NUMBER:SEED'."""
    config, stopped = home / "run.yaml", home / "stopped"
    calm = undisturbed(home, config)
    stop(home, config, stopped)
    crashes = chosen(all_crashes(home, config, stopped), sample)
    return Found(crashes, lambda crash: disturbed(crash, home, config, stopped, calm))


@dataclass(frozen=True)
class Found:
    """Cases, and what is wrong with one of them: '' if it is well."""

    cases: Sequence[Any]
    fault: Callable[[Any], str]


def chosen(cases: Sequence[Any], sample: str) -> list[Any]:
    if sample == "all":
        return list(cases)
    number, _, seed = sample.partition(":")
    return random.Random(int(seed)).sample(list(cases), min(int(number), len(cases)))


def result(folder: Path) -> tuple[str | None, str, bytes]:
    """What equal runs agree on."""
    weights = next((folder / "adapter").glob("*model.safetensors")).read_bytes()
    return finished_digest(folder), log_digest(folder), weights


def undisturbed(home: Path, config: Path) -> tuple[str | None, str, bytes]:
    ended = command(["run", str(config), "--out", str(home / "calm")])
    assert ended.code == 0, ended
    return result(home / "calm")


def stop(home: Path, config: Path, folder: Path) -> None:
    """A run that is killed while it writes the checkpoint after its first round."""
    names = counted(home / "probe", ["run", str(config), "--out", str(home / "probe")])
    at = names.index("replace rounds/part-000000.parquet") + 3
    killed = command(["run", str(config), "--out", str(folder)], Operations(folder, at).install)
    assert killed.code == KILLED, killed


def counted(root: Path, arguments: Sequence[str]) -> list[str]:
    """The operations of a command that nothing disturbs."""
    log, operations, leave = root.with_name(f"{root.name}.operations"), Operations(root), os._exit

    def leaving(code: int) -> None:
        log.write_text("\n".join(operations.log), encoding="utf-8")
        leave(code)

    def install() -> None:
        operations.install()
        os._exit = leaving  # type: ignore[assignment]

    ended = command(arguments, install)
    assert ended.code == 0, ended
    return log.read_text(encoding="utf-8").splitlines()


def all_crashes(home: Path, config: Path, stopped: Path) -> list[Crash]:
    run = counted(home / "counted", ["run", str(config), "--out", str(home / "counted")])
    shutil.copytree(stopped, home / "resumed")
    resume = counted(home / "resumed", ["resume", str(home / "resumed")])
    return [
        Crash(what, fault, at, name)
        for what, names in (("run", run), ("resume", resume))
        for fault in FAULTS
        for at, name in enumerate(names)
        if fault not in APPLIES or name.split()[0] in APPLIES[fault]
    ]


def disturbed(crash: Crash, home: Path, config: Path, stopped: Path, calm: tuple[str | None, str, bytes]) -> str:
    """'' if the disturbed command ends well or in one line, and what comes next ends as the calm run did."""
    folder = home / "disturbed"
    shutil.rmtree(folder, ignore_errors=True)
    run = ["run", str(config), "--out", str(folder)]
    if crash.what == "resume":
        shutil.copytree(stopped, folder)
    first = run if crash.what == "run" else ["resume", str(folder)]
    install = Operations(folder, crash.at, crash.fault).install
    told: list[Ended] = [command(first, install)]
    for again in (["resume", str(folder)], run, [*run, "--resume"]):
        if finished(folder):
            break
        told.append(command(again))
    faults = [ended.fault for ended in told if ended.fault]
    if faults:
        return "; ".join(faults)
    if not finished(folder):
        return f"never ends: {[ended.said for ended in told]}"
    if result(folder) != calm:
        return "other bits"
    left = [path.name for path in folder.rglob("*.part")]
    return f"left: {left}" if left else ""


def finished(folder: Path) -> bool:
    return finished_digest(folder) is not None
