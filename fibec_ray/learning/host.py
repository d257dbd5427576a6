"""A model that federated devices use one at a time, with the data and stored states of all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from fibec_ray import seeds
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.learning.batches import fixed_batches, steps_of, walk
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.fitting import fitted
from fibec_ray.learning.job import Job
from fibec_ray.learning.store import StateStore
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.tensors import Tensors
from fibec_ray.types import Broadcast, DeviceState, Layout


@dataclass(frozen=True)
class Workplace:
    """What all hosts of a process share. name: of the process, for the log."""

    job: Job
    federation: Federation
    store: StateStore
    name: str = "driver"


class Host:
    """A model and the data of all devices. initial: P^0; None: the current values of the model's trainable tensors."""

    def __init__(self, place: Workplace, model: LocalModel, initial: Tensors | None = None):
        self.place, self.model = place, model
        self.job, self.data, self.store = place.job, place.federation, place.store
        self.initial = model.read() if initial is None else initial
        layers = {name: model.layer_of(name) for name in self.initial}
        heads = frozenset(name for name in self.initial if not model.is_adapter(name))
        self.layout = Layout(layers, model.num_layers, model.adapter_config, frozenset(model.server_only), heads)

    def adopt(self, rank: int | None, state: DeviceState, shared: Tensors) -> Tensors:
        """Load a device into the model: its rank, its personal tensors and the server's values. Returns the values."""
        values = {**fitted(self.job, {**self.initial, **shared}, rank), **state.personal}
        self.model.set_rank(rank)
        self.model.load(values)
        return values

    def decoded(self, broadcast: Broadcast) -> Broadcast:
        """The broadcast with all shared tensors in the form that a model computes with."""
        shared, peft = broadcast.shared, self.job.method.peft
        if broadcast.encoded:
            like = {name: self.initial[name] for name in broadcast.encoded}
            shared = shared | self.job.method.uplink.decode_down(broadcast.payload, like)
        elif not peft.rebuilds:
            return broadcast
        ordered = {name: shared[name] for name in self.initial if name in shared}
        return replace(broadcast, shared=peft.rebuilt(ordered, self.initial), payload={}, encoded=())

    def batches(self, device: int) -> list[Tensor]:
        """The device's fixed batches: a seeded split of its samples; the last batch may be short."""
        return fixed_batches(self.job.seed, device, len(self.data.train_rows[device]), self.job.local.batch_size)

    def epochs(
        self, visible: Sequence[Tensor], round_: int, device: int, epochs: Iterable[int] | None = None
    ) -> Iterator[Tensor]:
        """The batches of some local epochs of a round in training order. epochs: their numbers; None: all."""
        chosen = range(self.job.local.epochs) if epochs is None else epochs
        curriculum = self.job.method.curriculum
        return chain.from_iterable(
            curriculum.pick(visible, self.rng("epoch", device, round_, epoch)) for epoch in chosen
        )

    def walk(self, num_batches: int, round_: int, device: int) -> list[int]:
        """The numbers of the batches that a round of pooled data trains on, in order.

        Pass p is shuffled like epoch p of the run.
        """
        epochs, curriculum = self.job.local.epochs, self.job.method.curriculum
        assert self.job.pooled_cohort is not None

        def shuffled(number: int) -> list[int]:
            rng = self.rng("epoch", device, *divmod(number, epochs))
            return [int(batch) for batch in curriculum.pick(torch.arange(num_batches).unbind(), rng)]

        return walk(steps_of(round_, num_batches, epochs, *self.job.pooled_cohort), num_batches, shuffled)

    def scan(
        self, shard: Shard, batches: Sequence[Tensor], names: Collection[str], round_: int, device: int
    ) -> FisherScan:
        """Squared gradients of the named tensors over the batches, computed when they are first needed."""
        rng = self.rng("fisher", device, round_)
        return FisherScan(self.model, shard, batches, names, rng, lambda: self.data.word_counts)

    def rng(self, purpose: str, *where: int) -> torch.Generator:
        """The generator for a purpose and place (such as device, round), from the run's seed."""
        return seeds.generator(self.job.seed, purpose, *where)
