"""A run on a cluster of three nodes, each with its own cache; a child process, as Ray is in one cluster at a time.

`python three_nodes.py SETTINGS.yaml FOLDER` prints JSON: the digests, and which caches have base weights.
"""

from __future__ import annotations

import json
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

STORE = 80_000_000


class Placed(Callback):
    """Keeps what the fleet says of its nodes."""

    num_prepared = 0
    fleet: Any = None
    places: list[str]
    """of the actors, in order: the numbers of their nodes"""

    def on_start(self, fleet: Any) -> None:
        self.fleet, self.num_prepared = fleet, fleet.num_prepared

    def on_round_end(self, row: Row) -> None:
        place = {one["NodeID"]: one["Labels"]["place"] for one in ray.nodes()} | {"": "not there yet"}
        self.places = [place[seat.node] for seat in self.fleet._pool._seats] if self.fleet else []


def main(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    cluster = Cluster(initialize_head=True, head_node_args=node(folder, 0, num_cpus=0))
    for number in (1, 2, 3):
        cluster.add_node(**node(folder, number, num_cpus=1))
    try:
        cluster.wait_for_nodes(timeout=60)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        callback = Placed()
        run = simulate(check(settings, "test"), folder / "run", callback)
        rows = read_devices(folder / "run").to_pylist()
        return {
            "adapter": run.adapter_digest,
            "log": log_digest(folder / "run"),
            "actors": len({row["actor"] for row in rows}),
            "by_device": {row["device"]: row["actor"] for row in rows},
            "places": callback.places,
            "num_prepared": callback.num_prepared,
            "caches": [len(list((folder / f"cache-{n}").glob("base-*.lock"))) for n in range(4)],
        }
    finally:
        ray.shutdown()
        cluster.shutdown()


def node(folder: Path, number: int, num_cpus: int) -> dict[str, Any]:
    environment = {"FIBEC_RAY_NODE_CACHE": str(folder / f"cache-{number}")}
    own = {"resources": {f"slot{number}": 1}, "labels": {"place": str(number)}}
    return {
        "num_cpus": num_cpus,
        "object_store_memory": STORE,
        "env_vars": environment,
        "include_dashboard": False,
        **own,
    }


if __name__ == "__main__":
    print(json.dumps(main(yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))))
