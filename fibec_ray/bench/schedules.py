"""Measure device-rounds per second under several schedules: `python -m fibec_ray.bench.schedules`.

Runs the embedded task with the packaged encoder on two Ray actors: 1,000 devices with 8 samples each and
log-normal speeds, 10 of them at work at a time. Every schedule does the same number of device-rounds and writes as many
checkpoints. The first tenth of the rounds and the last one are not measured. Logging and checkpoints are included.
Schedules take turns, since the speed of a shared machine changes by the minute; the medians of the turns are compared.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from fibec_ray.config.load import load_experiment
from fibec_ray.config.names import config_folder
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.simulation import simulate

COHORT = 10


def settings(schedule: str, num_devices: int, num_rounds: int, num_updates: int) -> list[str]:
    """Overrides of the quickstart. num_rounds: tens of device-rounds. num_updates: updates that make a round."""
    times = COHORT // num_updates
    return [
        f"schedule={schedule}",
        f"rounds={num_rounds * times}",
        f"evaluation.every={num_rounds * times}",
        f"checkpoint.every={times}",
        f"num_devices={num_devices}",
        f"cohort_size={COHORT}",
        f"data.synthetic.num_train={8 * num_devices}",
        "data.max_length=32",
        "partition=iid",
        "method=fedavg",
        "system.kind=lognormal",
        "fleet.kind=ray",
        "fleet.placement=pooled",
        "fleet.num_actors=2",
        "fleet.lanes=1",
    ]


def rate(run_dir: Path) -> float:
    """Device-rounds per second, from the log."""
    rows = [row for row in read_rounds(run_dir).to_pylist() if row["round"] >= 0]
    first, last = rows[len(rows) // 10], rows[-2]  # the last round is evaluated
    done = sum(row["num_devices"] for row in rows if first["round"] < row["round"] <= last["round"])
    return float(done / (last["wall_time_s"] - first["wall_time_s"]))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m fibec_ray.bench.schedules", description=__doc__)
    parser.add_argument("--schedules", nargs="+", default=["sync", "async"])
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20, help="tens of device-rounds in a turn")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    quiet_libraries()
    rates: dict[str, list[float]] = {schedule: [] for schedule in arguments.schedules}
    for turn in range(arguments.turns):
        for schedule in arguments.schedules:
            rates[schedule].append(_measure(schedule, arguments.devices, arguments.rounds))
            print(f"turn {turn + 1}, {schedule}: {rates[schedule][-1]:.2f} device-rounds/s", flush=True)
    medians = {schedule: median(found) for schedule, found in rates.items()}
    first = next(iter(medians.values()))
    for schedule, found in medians.items():
        print(f"{schedule}: median {found:.2f} device-rounds/s, {found / first:.2f} of {arguments.schedules[0]}")


def _measure(schedule: str, num_devices: int, num_rounds: int) -> float:
    probe = load_experiment(config_folder() / "quickstart.yaml", [f"schedule={schedule}", f"cohort_size={COHORT}"])
    overrides = settings(schedule, num_devices, num_rounds, probe.schedule.num_updates(COHORT))
    with tempfile.TemporaryDirectory() as folder:
        experiment = load_experiment(config_folder() / "quickstart.yaml", overrides)
        return rate(simulate(experiment, Path(folder) / schedule).folder)


if __name__ == "__main__":
    main()
