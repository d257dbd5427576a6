"""Measures the cost of FibecFed's initialisation phase: `python -m fibec_ray.bench.fisher`, or `make bench-fisher`.

Uses one device's shard of the embedded task and the packaged encoder. Times scoring (difficulty and diagonal Fisher
information) and layer sensitivity, relative to one plain training epoch and to a loop over single samples. Then
measures the memory of scoring a short and a long shard.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from fibec_ray.config.load import load_experiment, load_method
from fibec_ray.config.names import config_folder
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.job import Job
from fibec_ray.learning.local_update import Steps, local_update
from fibec_ray.likelihoods import Label
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors

SHORT, LONG = 100, 10_000
"""samples of the shards whose memory is compared"""


@dataclass(frozen=True)
class Bench:
    """One device's model, data and fixed batches."""

    job: Job
    model: LocalModel
    shard: Shard
    batches: Sequence[Tensor]
    initial: Tensors

    @property
    def rows(self) -> Tensor:
        """All samples, in the order of the batches."""
        return torch.cat(list(self.batches))

    def train(self) -> None:
        """One plain local epoch."""
        self.model.load(self.initial)
        local = self.job.local
        local_update(self.model, self.shard, Steps(self.batches, local, local.learning_rate))

    def score(self, label: Label = "observed") -> None:
        """Compute difficulty and diagonal Fisher information of every batch."""
        self.model.load(self.initial)
        scan = FisherScan(self.model, self.shard, self.batches, list(self.initial), torch.Generator())
        scan.read(label)

    def sense(self) -> None:
        """Compute the layers' sensitivity."""
        self.model.load(self.initial)
        sharing = load_method(config_folder() / "methods" / "fibecfed.yaml").sharing
        whole = sharing.model_copy(update={"max_samples": len(self.rows)})
        whole.score(self.model, self.shard, torch.Generator())

    def score_one_by_one(self) -> None:
        """Compute difficulty and diagonal in the simplest way: autograd on single samples."""
        self.model.load(self.initial)
        adapter = [p for name, p in self.model.trainable.items() if self.model.is_adapter(name)]
        sums = [torch.zeros_like(p) for p in adapter]
        for row in self.rows:
            loss = self.model.forward(self.shard.batch(row.view(1))).losses.sum()
            squares = [grad.square_() for grad in torch.autograd.grad(loss, adapter)]
            float(sum(value.sum() for value in squares))
            for total, value in zip(sums, squares, strict=True):
                total.add_(value)


def open_bench(num_samples: int, folder: Path, threads: int, max_length: int = 48) -> Bench:
    """One device with this many samples, prepared as in a run."""
    settings = ["num_devices=1", "cohort_size=1", "method=fedavg"]
    settings += [f"data.synthetic.num_train={num_samples}", f"data.max_length={max_length}"]
    experiment = load_experiment(config_folder() / "quickstart.yaml", settings)
    prepared = prepare(experiment, folder)
    job = experiment.job(prepared.answers(experiment.task))
    worker_spec = WorkerSpec(job, folder, cache_dir(), FleetConfig(kind="local", lanes=1, threads=threads))
    worker = worker_spec.worker()
    return Bench(job, worker.model, worker_spec.federation().train_shard(0), worker.batches(0), worker.initial)


def time_table(bench: Bench, repeats: int) -> str:
    """Time all tasks in turn, several times, so that changes of the machine's speed affect all alike.

    Prints medians.
    """
    works: dict[str, Callable[[], None]] = {
        "plain training epoch": bench.train,
        "scoring: difficulty and diagonal Fisher": bench.score,
        "scoring, one sample at a time": bench.score_one_by_one,
        "scoring, expected label (C = 6)": lambda: bench.score("expected"),
        "layer sensitivity": bench.sense,
    }
    for work in works.values():
        work()
    found = {name: [] for name in works}  # type: dict[str, list[float]]
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(timeit.timeit(work, number=1))
    epochs = found["plain training epoch"]
    lines = [f"| {bench.shard.num_samples} samples | seconds | / training epoch |", "|---|---|---|"]
    for name, values in found.items():
        ratio = median(value / epoch for value, epoch in zip(values, epochs, strict=True))
        lines.append(f"| {name} | {median(values):.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def peak_of(num_samples: int, threads: int) -> tuple[int, int]:
    """Memory of a new process before it scores a shard of this size, and at its peak, in bytes."""
    command = [sys.executable, "-m", "fibec_ray.bench.fisher", "--peak", str(num_samples), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, peak = done.stdout.split()[-2:]
    return int(before), int(peak)


def measure_peak(bench: Bench) -> tuple[int, int]:
    """Like `peak_of`, in this process. Linux only: resets the kernel's record of peak memory first."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    bench.score()
    return before, _status("VmHWM")


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m fibec_ray.bench.fisher", description=__doc__)
    parser.add_argument("--samples", type=int, default=256, help="of the shard that is timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--peak", type=int, metavar="N", help="print the peak memory of scoring N samples, and no more")
    arguments = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.peak:
            print(*measure_peak(open_bench(arguments.peak, Path(folder), arguments.threads, max_length=16)))
            return
        print(time_table(open_bench(arguments.samples, Path(folder), arguments.threads), arguments.repeats), flush=True)
    print("\n| scoring, 16 tokens | before, MB | peak, MB |\n|---|---|---|")
    for count in (SHORT, LONG):
        before, peak = peak_of(count, arguments.threads)
        print(f"| {count:,} samples | {before / 1e6:.0f} | {peak / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
