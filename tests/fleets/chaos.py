"""A run on a cluster of three nodes that die, in a process of its own; started by test_chaos.py.

python chaos.py SETTINGS.yaml RUN FOUND.json: the head has no device actors, two nodes have one each. In round 1 one
of them dies when a device is done; in round 2 all that are left die at once, with the updates that they hold, and
others join.
Writes the digests, the notes, and who did what at which attempt.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import ray
import yaml
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[1]))

from fleets.casualties import Reaper

from fibec_ray.config.load import check
from fibec_ray.roundlog.reader import log_digest, read_devices
from fibec_ray.runs.simulation import simulate

OPTIONS = {
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 1000,
    "health_check_initial_delay_ms": 5000,
    "max_direct_call_object_size": 1000,  # bytes; an update of the tiny model is larger, and lives on its actor's node
}


def main(settings: str, folder: str, out: str) -> None:
    os.environ.pop("RAY_ADDRESS", None)
    store = {"object_store_memory": 100_000_000}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": OPTIONS, **store}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, **store) for _ in range(2)]

    def strike(round_: int) -> None:
        if round_ == 1:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1, **store))
        if round_ == 2:
            while nodes:
                cluster.remove_node(nodes.pop(), allow_graceful=False)
            nodes.extend(cluster.add_node(num_cpus=1, **store) for _ in range(2))

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        reaper = Reaper(strike)
        run = simulate(check(yaml.safe_load(Path(settings).read_text()), settings), Path(folder), reaper)
        rows = read_devices(Path(folder)).to_pylist()
        found = {
            "digests": [run.adapter_digest, log_digest(Path(folder))],
            "notes": reaper.notes,
            "attempts": [[row["round"], row["device"], row["actor"], row["attempt"]] for row in rows],
        }
        Path(out).write_text(json.dumps(found))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
