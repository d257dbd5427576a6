"""A run whose machine runs out of memory, in a process of its own; started by test_chaos.py.

python crowded.py SETTINGS.yaml RUN FOUND.json: while round 1 trains, something that is none of Ray's fills the memory
up to the limit of Ray's monitor, which kills actors for it, and goes away as soon as one is lost.
Writes the digests, the notes, and whom the monitor says that it killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from fleets.casualties import Reaper

from fibec_ray.config.load import check
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.simulation import simulate

ROOM, PIECE = 3 * 10**9, 10**8
"""bytes that may be used beyond what is used now, and that are filled in at a time"""


class Crowd(Reaper):
    def __init__(self) -> None:
        super().__init__(lambda round_: self._come() if round_ == 1 else None)
        self.pieces: list[bytes] = []
        self.filled, self._gone = 0, threading.Event()

    def on_message(self, text: str) -> None:
        super().on_message(text)
        if "was lost" in text:
            self._gone.set()

    def _come(self) -> None:
        threading.Thread(target=self._fill, daemon=True).start()

    def _fill(self) -> None:
        while not self._gone.is_set():
            if self.filled < ROOM:
                self.pieces.append(b"x" * PIECE)
                self.filled += PIECE
            time.sleep(0.01)
        self.pieces.clear()


def main(settings: str, folder: str, out: str) -> None:
    os.environ.pop("RAY_ADDRESS", None)
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + ROOM) / memory.total
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        logging_level="ERROR",
        _system_config={"memory_usage_threshold": limit, "memory_monitor_refresh_ms": 100},
    )
    try:
        crowd = Crowd()
        run = simulate(check(yaml.safe_load(Path(settings).read_text()), settings), Path(folder), crowd)
        logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
        said = [line for path in logs.glob("raylet*") for line in path.read_text().splitlines()]
        found = {
            "digests": [run.adapter_digest, log_digest(Path(folder))],
            "notes": crowd.notes,
            "killed": [line for line in said if "Selected to kill" in line],
        }
        Path(out).write_text(json.dumps(found))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
