"""Measures the cost of a checkpoint after each round: `python -m fibec_ray.bench.checkpoint`.

Runs the embedded task with the packaged encoder in this process: 100 devices of 32 samples, 10 per round. Prints the
seconds of a round (training only), the time that the round loop waits for a checkpoint, the time that the writing
thread works, and the time of the round log's digests.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fibec_ray.checkpoints import checkpoint
from fibec_ray.checkpoints.checkpointer import Checkpointer
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import load_experiment
from fibec_ray.config.names import config_folder
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import plan_round
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.runs.simulation import cache_dir, prepare, totals_of


@dataclass(frozen=True)
class Costs:
    """Seconds; bytes of a checkpoint's server file and of all device states."""

    round_s: float
    stands_still_s: float
    beside_s: float
    digest_s: float
    server_bytes: int
    state_bytes: int


def measure(experiment: Experiment, folder: Path) -> list[Costs]:
    """Measure each round. Waits for the round's checkpoint, so that its time is not mixed with the next round's."""
    prepared = prepare(experiment, folder)
    worker_spec = WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())
    totals, fleet, found = totals_of(experiment, worker_spec.job), LocalFleet(worker_spec), []
    totals.setup(fleet.setup())
    checkpointer = Checkpointer(folder, "bench", experiment.checkpoint, worker_spec.store, fleet)
    for t in range(experiment.rounds):
        plan, times = plan_round(worker_spec.job, t), [time.perf_counter()]
        totals.round(plan, fleet.run_round(plan), None)
        times.append(time.perf_counter())
        checkpointer.after(t, plan.cohort, totals, {})
        times.append(time.perf_counter())
        checkpointer.settle()
        times.append(time.perf_counter())
        fleet.digest()
        times.append(time.perf_counter())
        trained, stood_still, beside, hashed = (end - start for start, end in zip(times, times[1:], strict=False))
        found.append(Costs(trained, stood_still, beside, hashed, *_sizes(worker_spec, t + 1)))
    checkpointer.close()
    return found


def _sizes(worker_spec: WorkerSpec, next_round: int) -> tuple[int, int]:
    server = checkpoint.folder_of(worker_spec.run_dir, next_round) / checkpoint.SERVER
    states = worker_spec.state_dir.glob("*/*.safetensors")
    return server.stat().st_size, sum(path.stat().st_size for path in states)


def table(name: str, rounds: list[Costs]) -> str:
    """A Markdown table of medians over rounds."""
    cost = {field: median(getattr(one, field) for one in rounds) for field in Costs.__dataclass_fields__}
    lines = [f"| {name} | seconds | % of a round |", "|---|---|---|"]
    for field, what in (
        ("round_s", "training of a round"),
        ("stands_still_s", "the round loop stands still"),
        ("beside_s", "the thread beside it works"),
        ("digest_s", "digest of the adapter"),
    ):
        lines.append(f"| {what} | {cost[field]:.4f} | {100 * cost[field] / cost['round_s']:.2f} |")
    server, states = cost["server_bytes"] / 1e6, cost["state_bytes"] / 1e6
    return "\n".join([*lines, "", f"server {server:.2f} MB a checkpoint, device states {states:.1f} MB in all", ""])


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m fibec_ray.bench.checkpoint", description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["fedavg", "fibecfed"])
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    quiet_libraries()
    sizes = [f"num_devices={arguments.devices}", f"cohort_size={min(10, arguments.devices)}"]
    sizes += [f"data.synthetic.num_train={32 * arguments.devices}", f"rounds={arguments.rounds}", "data.max_length=32"]
    for method in arguments.methods:
        experiment = load_experiment(config_folder() / "quickstart.yaml", [f"method={method}", *sizes])
        with tempfile.TemporaryDirectory() as folder:
            print(table(method, measure(experiment, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
