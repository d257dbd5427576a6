"""The exceptions of the package; the command line turns each into one line and an exit code.

FibecError
├── UserError               exit code 2: the person who started the run can fix it
│   ├── ConfigError         a key, value or combination of the experiment
│   ├── DataError           a data set, split, column or label
│   ├── ModelError          a backbone, tokenizer, head or checkpoint
│   ├── CapacityError       what the machine has too little of
│   ├── RunDirError         the output folder
│   ├── StorageError        a URL of shared or object storage
│   └── ClusterError        a cluster's address or token, a job's name, a request that it refuses
└── RunError                exit code 1: the run failed under way
    ├── DeviceError         a device's own work (names device, round and stage)
    ├── FleetError          actors or nodes that cannot be had or do not answer
    │   └── ServerLostError the server's actor is gone; the fleet makes another
    └── JobFailed           a job on a cluster that did not finish
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache


class FibecError(Exception):
    """Root of every error that this package raises on purpose."""

    exit_code = 1


class UserError(FibecError):
    """Input that the user can fix. Nothing has been written. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A key, a value or a combination of settings is wrong."""


class DataError(UserError):
    """A data set, split, column or label is missing or wrong."""


class ModelError(UserError):
    """A backbone, tokenizer, head or checkpoint cannot be used."""


class CapacityError(UserError):
    """The machine has too little memory, disk or accelerators for the experiment."""


class RunDirError(UserError):
    """A run directory is missing, damaged, busy, or holds something else."""


class StorageError(UserError):
    """A URL of shared or object storage cannot be read or written."""


class ClusterError(UserError):
    """A cluster's address, token, job name or request is wrong."""


class RunError(FibecError):
    """A run failed under way. It can be resumed. Exit code 1."""


class DeviceError(RunError):
    """A federated device's work went wrong. `stage` is one of setup, train, evaluate."""

    def __init__(self, device: int, round_: int, stage: str, what: str):
        super().__init__(device, round_, stage, what)  # all four, so that the error survives a trip between actors
        self.device, self.round, self.stage, self.what = device, round_, stage, what

    def __str__(self) -> str:
        return f"device {self.device}, {round_name(self.round)}, {self.stage}: {self.what}"


class FleetError(RunError):
    """Actors or nodes could not be started, or do not answer."""


class ServerLostError(FleetError):
    """The server's actor is gone; the fleet starts another."""


class JobFailed(RunError):
    """A job on a cluster ended without success."""


def round_number(index: int) -> int:
    """The round as people count it: 0 is before training, then 1, 2 ... The log's `round` counts from -1, so one less.

    Messages, the console, figures and tables all use it.
    """
    return index + 1


def round_name(index: int) -> str:
    """'round 4' for the log's round 3."""
    return f"round {round_number(index)}"


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that a misspelt word most likely means; None if none is near.

    Letter case, `-` and `_` do not count. A word is also near the only name that it begins or ends, or that begins it.
    """
    names = {_plain(name): name for name in sorted(allowed, reverse=True)}
    plain = _plain(word)
    if plain in names:
        return names[plain]
    if found := get_close_matches(plain, names, n=1):
        return names[found[0]]
    parts = [name for known, name in names.items() if len(plain) > 2 and known.startswith(plain)]
    parts = parts or [name for known, name in names.items() if len(plain) > 2 and known.endswith(plain)]
    parts = parts or [name for known, name in names.items() if len(known) > 2 and plain.startswith(known)]
    return parts[0] if len(parts) == 1 else None


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "").replace(" ", "")


def did_you_mean(word: str, allowed: Iterable[str], then: str = "") -> str:
    """The end of an error sentence about an unknown name: the nearest allowed one, or all of them.

    then: what follows in the message.
    """
    names = sorted(allowed)
    near = nearest(word, names)
    if near:
        return f"did you mean '{near}'?{' ' if then else ''}{then}"
    return f"allowed: {', '.join(names) or 'none'}{'; ' if then else ''}{then}"


@cache
def note_renamed(old: str, new: str) -> None:
    """Tell the user, once for each name, that an old name is still accepted. new: what to write now."""
    logging.getLogger("fibec_ray").warning("%s is now called %s; the old name works in this release", old, new)
