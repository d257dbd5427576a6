"""The bare loop: no framework, two processes of one thread; `python -m fibec_ray.bench.rivals.bare ARRAYS OUT DTYPE`.

The reference for the overhead of frameworks. The parent sends the global adapter to both processes. Each trains half of
the cohort and returns the sum of its adapters. Models stay in their processes; adapters are sent as one flat array.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from torch import multiprocessing

from fibec_ray.bench.rivals import training
from fibec_ray.bench.rivals.training import Arguments

PROCESSES = 2


def work(pipe: Any, folder: str, dtype: str, part: int) -> None:
    """Train every other device of each cohort, round by round."""
    workload, model = training.load_workload(folder), training.load_model(folder, dtype)
    pipe.send(None)
    for t in range(workload.rounds):
        received = training.unflat(pipe.recv(), workload.initial)
        total = np.zeros_like(training.flat(received), dtype=np.float64)
        for place in range(part, workload.cohort_size, PROCESSES):
            training.load(model, received)
            training.train(model, workload, t, place)
            total += training.flat(training.read(model))
        pipe.send(total)


def run(arguments: Arguments) -> None:
    """Run the workload."""
    workload = training.load_workload(arguments.arrays)
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for part in range(PROCESSES):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, arguments.arrays, arguments.dtype, part), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    adapter, ends = training.flat(workload.initial), []
    for _ in range(workload.rounds):
        for pipe in pipes:
            pipe.send(adapter)
        # All devices have as many samples, so the weighted mean is the mean.
        adapter = (sum(pipe.recv() for pipe in pipes) / workload.cohort_size).astype(np.float32)
        ends.append(time.time())
    training.report(arguments, ends, training.unflat(adapter, workload.initial), torch.__version__)
    for process in processes:
        process.join()


if __name__ == "__main__":
    run(Arguments.of(sys.argv))
