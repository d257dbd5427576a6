"""Open the round log of a run, to begin it or to go on with it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from fibec_ray.checkpoints.identity import Identity
from fibec_ray.config.experiment import Experiment
from fibec_ray.files.yaml_text import to_yaml
from fibec_ray.roundlog.writer import RoundLog


def open_log(
    experiment: Experiment, identity: Identity, folder: Path, newest: Mapping[str, str] = MappingProxyType({})
) -> RoundLog:
    """The log of a run in this folder. newest: digests of its newest parts, where the run goes on.

    A part holds as many rounds as combine one cohort's updates: one if every round waits for its whole cohort.
    """
    rounds_per_part = max(1, experiment.cohort_size // experiment.schedule.num_updates(experiment.cohort_size))
    return RoundLog(folder, _metadata(experiment, identity), newest, rounds_per_part)


def _metadata(experiment: Experiment, identity: Identity) -> dict[str, str]:
    """What every file of the round log says about its run."""
    config = to_yaml(experiment.model_dump(mode="json"))
    return {
        "run_id": identity.run_id,
        "seed": str(experiment.seed),
        "git_commit": identity.git_commit,
        "config": config,
    }


@cache
def git_commit() -> str:
    """The commit of the running code; '' if it is not a git checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
