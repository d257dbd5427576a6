"""Flower's simulation on Ray, two client actors; `python -m fibec_ray.bench.rivals.flower ARRAYS OUT DTYPE`.

What is tuned: each actor keeps its model from call to call (Flower itself calls the client anew every time), the
adapter travels as one array, evaluation is off, and Ray is given two CPUs and no dashboard.

A node is asked for by what it is to train on, not by its number: node ids are drawn afresh in each run, and the
cohorts are to be those of all contenders. Clients keep nothing, so that changes nothing of the work.
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
    """FedAvg with the workload's cohorts; notes when each round ended."""

    def __init__(self, arguments: Arguments):
        super().__init__(fraction_evaluate=0.0)
        self._arguments, self._size = arguments, training.load_workload(arguments.arrays).cohort_size
        self.ends: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        nodes, _ = sample_nodes(grid, NUM_NODES, self._size)
        return [self._message(node, server_round - 1, place, arrays) for place, node in enumerate(nodes)]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        # Flower goes on without clients that failed; a speed without them would be no speed.
        num_trained = sum(not reply.has_error() for reply in replies)
        if num_trained != self._size:
            raise RuntimeError(f"round {server_round}: {num_trained} of {self._size} clients were trained")
        found = super().aggregate_train(server_round, replies)
        self.ends.append(time.time())
        return found

    def _message(self, node: int, round_: int, place: int, arrays: ArrayRecord) -> Message:
        where = {"arrays": self._arguments.arrays, "dtype": self._arguments.dtype, "round": round_, "place": place}
        content = RecordDict({"arrays": arrays, "config": ConfigRecord(where)})
        return Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node)


def client() -> ClientApp:
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        where = message.content["config"]
        workload, model = training.load_workload(where["arrays"]), training.load_model(where["arrays"], where["dtype"])
        (received,) = message.content["arrays"].to_numpy_ndarrays()
        training.load(model, training.unflat(received, workload.initial))
        loss = training.train(model, workload, where["round"], where["place"])
        metrics = {"num-examples": workload.samples_per_device, "loss": loss}
        content = {"arrays": ArrayRecord([training.flat(training.read(model))]), "metrics": MetricRecord(metrics)}
        return Message(content=RecordDict(content), reply_to=message)

    return app


def server(arguments: Arguments) -> ServerApp:
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
    ray = {"num_cpus": ACTORS, "include_dashboard": False, "object_store_memory": 500_000_000, "log_to_driver": False}
    settings = {"init_args": ray, "client_resources": {"num_cpus": 1, "num_gpus": 0}}
    run_simulation(server(arguments), client(), NUM_NODES, backend_config=settings)


if __name__ == "__main__":
    run(Arguments.of(sys.argv))
