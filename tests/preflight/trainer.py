"""A process that hosts devices, as an actor does: prints its highest private memory. Started by test_memory.py."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

from fibec_ray.answers import Answers
from fibec_ray.config.load import check
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.evaluation import evaluation_chunks
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.server import Server


class Peak(threading.Thread):
    """Looks every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_full_info().uss)
            time.sleep(0.02)


def main(settings: Path, folder: Path, cache: Path) -> None:
    """folder: where the federation's data are."""
    experiment = check(yaml.safe_load(settings.read_text()), "trainer")
    job = experiment.job(Answers(likelihood="categorical", num_scores=len(experiment.task.label_names)))
    peak = Peak()
    peak.start()
    worker = WorkerSpec(job, folder, cache, experiment.fleet).worker()
    server = Server(job, worker.initial, worker.layout)
    lanes = experiment.fleet.known_lanes or 1
    opened = (
        [worker.setup_group(group) for group in split(range(job.num_devices), lanes)] if job.method.needs_setup else []
    )
    server.setup([report for group in opened for report, _ in group])
    plan = plan_round(job, 0)
    for group in split(plan.cohort, lanes):
        worker.train_group(plan, group, server.broadcast(0))
    federation = WorkerSpec(job, folder, cache).federation()
    worker.evaluate_shared(evaluation_chunks(federation.test_set(), job.eval_batch_size), server.broadcast(0))
    print(peak.bytes)


def split(devices: Sequence[int], size: int) -> list[Sequence[int]]:
    return [devices[i : i + size] for i in range(0, len(devices), size)]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
