"""A run whose driver is weighed after each round, in a process of its own; started by test_memory.py.

python weighed.py SETTINGS.yaml RUN FOUND.json: writes the bytes that are the process's alone, by round.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil
import ray
import yaml

from fibec_ray.config.load import check
from fibec_ray.learning.run_totals import Row
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.simulation import simulate


class Scale(Callback):
    def __init__(self) -> None:
        self.uss_bytes: list[int] = []

    def on_round_end(self, row: Row) -> None:
        if row["round"] >= 0:
            self.uss_bytes.append(psutil.Process().memory_full_info().uss)


def main(settings: str, folder: str, out: str) -> None:
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=150_000_000,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        scale = Scale()
        simulate(check(yaml.safe_load(Path(settings).read_text()), settings), Path(folder), scale)
        Path(out).write_text(json.dumps({"uss_bytes": scale.uss_bytes}))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
