"""Drivers that are killed: forks one after another, SIGKILLs each at a random moment, and lets the last one end.

python nursery.py FOLDER/NAME.yaml NUM_KILLS SEED: a calm run, FOLDER/NAME/calm, and one whose drivers are killed,
FOLDER/NAME/killed. Prints, as JSON, the newest round in the log when each driver died. One process imports everything
once; its forks train, and it never does itself: what has run a backward pass cannot be forked.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import scipy.stats  # noqa: F401  (what the forks would each import by themselves)
import sklearn.metrics  # noqa: F401
import torch
import yaml

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.runs.records import last_logged
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import cache_dir, prepare, simulate


def main(settings: str, num_kills: str, seed: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    experiment = check(yaml.safe_load(Path(settings).read_text()), settings)
    warm_up(experiment)
    died_at = disturb(experiment, Path(settings).with_suffix(""), int(num_kills), random.Random(int(seed)))
    print(json.dumps(died_at))


def warm_up(experiment: Experiment) -> None:
    """Models, tokenizers and what they import."""
    with TemporaryDirectory() as warm:
        prepared = prepare(experiment, Path(warm))
        WorkerSpec(experiment.job(prepared.answers(experiment.task)), Path(warm), cache_dir()).worker()


def disturb(experiment: Experiment, home: Path, num_kills: int, rng: random.Random) -> list[int]:
    """A calm run in home/calm, another in home/killed; the newest round in its log whenever a driver of it died."""
    folder, died_at = home / "killed", list[int]()
    assert wait(fork(lambda: simulate(experiment, home / "calm"))) == 0

    def go() -> None:
        if (folder / "checkpoints" / "run.json").exists():
            resume(folder)
            return
        shutil.rmtree(folder, ignore_errors=True)  # it died before its data were written
        simulate(experiment, folder)

    while len(died_at) < num_kills:
        driver = fork(go)
        if len(died_at) % 3 == 2:  # at any moment, the start included; else within the next rounds
            time.sleep(rng.uniform(0.1, 1.2))
        else:
            wait_for_a_round(folder, driver)
            time.sleep(rng.uniform(0, 0.1))
        os.kill(driver, signal.SIGKILL)
        if wait(driver) == 0:
            break  # it was faster
        died_at.append(last_logged(folder))
    assert wait(fork(go)) == 0
    return died_at


def wait_for_a_round(folder: Path, driver: int) -> None:
    before = last_logged(folder)
    while last_logged(folder) <= before and Path(f"/proc/{driver}/stat").read_text().split()[2] != "Z":
        time.sleep(0.005)


def fork(work: Callable[[], object]) -> int:
    driver = os.fork()
    if driver:
        return driver
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(driver: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
