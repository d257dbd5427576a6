"""Flower's simulation on Ray, two client actors; `python -m fibec_ray.bench.rivals.flower ARRAYS OUT DTYPE
[DEVICE]`. On a GPU the actors share it.

Tuning: each actor keeps its model between calls (Flower itself makes the client anew each time), the adapter is sent as
one array, evaluation is off, and Ray has two CPUs and no dashboard.

Messages name the device to train, and any node may do it: Flower draws node ids anew in each run, while all contenders
train the same cohorts. Clients keep no state, so the work is the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

import flwr
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import sample_nodes
from flwr.simulation import run_simulation

from fibec_ray.bench.rivals import training
from fibec_ray.bench.rivals.training import Arguments

NUM_NODES = 100
ACTORS = 2


class SameCohorts(FedAvg):
    """FedAvg with the workload's cohorts; records when each round ended."""

    def __init__(self, arguments: Arguments):
        super().__init__(fraction_evaluate=0.0)
        self._arguments, self._size = arguments, training.load_workload(arguments.arrays).cohort_size
        self.ends: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the workload's cohort to some nodes."""
        nodes, _ = sample_nodes(grid, NUM_NODES, self._size)
        return [self._message(node, server_round - 1, place, arrays) for place, node in enumerate(nodes)]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Average, and note the time. Raises RuntimeError if a client failed."""
        replies = list(replies)
        # Flower continues without clients that failed, which would make it look faster.
        num_trained = sum(not reply.has_error() for reply in replies)
        if num_trained != self._size:
            raise RuntimeError(f"round {server_round}: {num_trained} of {self._size} clients were trained")
        found = super().aggregate_train(server_round, replies)
        self.ends.append(time.time())
        return found

    def _message(self, node: int, round_: int, place: int, arrays: ArrayRecord) -> Message:
        given = self._arguments
        where = {"arrays": given.arrays, "dtype": given.dtype, "device": given.device, "round": round_, "place": place}
        content = RecordDict({"arrays": arrays, "config": ConfigRecord(where)})
        return Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node)


def client() -> ClientApp:
    """The client app: trains one device of the cohort."""
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        where = message.content["config"]
        workload = training.load_workload(where["arrays"])
        model = training.load_model(where["arrays"], where["dtype"], where["device"])
        (received,) = message.content["arrays"].to_numpy_ndarrays()
        training.load(model, training.unflat(received, workload.initial))
        loss = training.train(model, workload, where["round"], where["place"])
        metrics = {"num-examples": workload.samples_per_device, "loss": loss}
        content = {"arrays": ArrayRecord([training.flat(training.read(model))]), "metrics": MetricRecord(metrics)}
        return Message(content=RecordDict(content), reply_to=message)

    return app


def server(arguments: Arguments) -> ServerApp:
    """The server app: runs all rounds and writes the report."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        workload, strategy = training.load_workload(arguments.arrays), SameCohorts(arguments)
        start = ArrayRecord([training.flat(workload.initial)])
        result = strategy.start(grid=grid, initial_arrays=start, num_rounds=workload.rounds)
        (adapter,) = result.arrays.to_numpy_ndarrays()
        training.report(arguments, strategy.ends, training.unflat(adapter, workload.initial), flwr.__version__)

    return app


def run(arguments: Arguments) -> None:
    """Run the workload."""
    ray = {"num_cpus": ACTORS, "include_dashboard": False, "object_store_memory": 500_000_000, "log_to_driver": False}
    gpus = 0 if arguments.device == "cpu" else 1 / ACTORS
    settings = {"init_args": ray, "client_resources": {"num_cpus": 1, "num_gpus": gpus}}
    run_simulation(server(arguments), client(), NUM_NODES, backend_config=settings)


if __name__ == "__main__":
    run(Arguments.of(sys.argv))
