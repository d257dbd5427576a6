"""A run on a cluster that grows, in a process of its own; started by test_chaos.py.

python joining.py SETTINGS.yaml RUN FOUND.json: a head without device actors and one node; after round 0 another joins.
Writes the digests, the notes, and the actors of each round.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.cluster_utils import Cluster

from fibec_ray.config.load import check
from fibec_ray.learning.run_totals import Row
from fibec_ray.roundlog.reader import log_digest, read_devices
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.simulation import simulate

STORE = {"object_store_memory": 80_000_000}


class Host(Callback):
    """Adds the node, and makes sure that its actor is there before the last round."""

    def __init__(self, cluster: Cluster):
        self._cluster = cluster
        self._fleet: Any = None
        self.notes: list[str] = []

    def on_start(self, fleet: Any) -> None:
        self._fleet = fleet

    def on_round_end(self, row: Row) -> None:
        if row["round"] == 0:
            self._cluster.add_node(num_cpus=1, **STORE)
            self._cluster.wait_for_nodes(timeout=60)
        if row["round"] == 2:
            starting = [seat.answer for seat in self._fleet._pool._seats if seat.answer is not None]
            ray.wait(starting, num_returns=len(starting), timeout=120)

    def on_message(self, text: str) -> None:
        self.notes.append(text)


def main(settings: str, folder: str, out: str) -> None:
    os.environ.pop("RAY_ADDRESS", None)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **STORE})
    cluster.add_node(num_cpus=1, **STORE)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        host = Host(cluster)
        run = simulate(check(yaml.safe_load(Path(settings).read_text()), settings), Path(folder), host)
        rows = read_devices(Path(folder)).to_pylist()
        found = {
            "digests": [run.adapter_digest, log_digest(Path(folder))],
            "notes": host.notes,
            "actors": {str(t): sorted({row["actor"] for row in rows if row["round"] == t}) for t in (0, 3)},
        }
        Path(out).write_text(json.dumps(found))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
