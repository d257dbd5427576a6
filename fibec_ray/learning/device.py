"""A federated device: its initialization phase, training and evaluation, in any process.

Every method of the worker is a pure function of (job, data, plan, broadcast) and of the stored states that the plan
names: where it runs, and how often, does not change its result.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from fibec_ray import seeds
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.errors import DeviceError, FibecError
from fibec_ray.learning.batches import fixed_batches
from fibec_ray.learning.evaluation import evaluation_chunks, in_row_order
from fibec_ray.learning.faults import NOT_FINITE
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.fitting import fitted, news, on_wire, rank_of, room_of
from fibec_ray.learning.job import Job
from fibec_ray.learning.local_update import Trained
from fibec_ray.learning.pooled import steps_of, walk
from fibec_ray.learning.records import DeviceRound, Opened, opening_report, training_report
from fibec_ray.learning.session import LocalSession
from fibec_ray.learning.store import StateStore
from fibec_ray.method import AXES
from fibec_ray.model_types import LocalModel, Shard, Work
from fibec_ray.parts.mask.base import may_move
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import Tensors, all_finite, digest, drop, num_bytes, select, subtract, with_prefix
from fibec_ray.types import (
    OPENING_ROUND,
    Broadcast,
    ClientUpdate,
    DeviceState,
    LayerReport,
    Layout,
    Predictions,
    RoundPlan,
    States,
)


class DeviceWorker:
    """Hosts federated devices, one at a time, on one model.

    name: of the process, for the log. initial: P^0; None: what the model's trainable tensors hold.
    """

    def __init__(
        self,
        job: Job,
        model: LocalModel,
        federation: Federation,
        store: StateStore,
        name: str = "driver",
        initial: Tensors | None = None,
    ):
        self.model = model
        self._job, self._data, self._store, self._name = job, federation, store, name
        self._kept = ""
        """digest of the state that the device-round under way has stored; '' if it has stored none"""
        self.initial = model.read() if initial is None else initial
        layers = {name: model.layer_of(name) for name in self.initial}
        heads = frozenset(name for name in self.initial if not model.is_adapter(name))
        self.layout = Layout(layers, model.num_layers, model.adapter_config, frozenset(model.carried), heads)

    def open(self, device: int, attempt: int = 0) -> tuple[LayerReport, DeviceReport]:
        """The initialisation phase: curriculum order, layer scores, first Fisher information; writes the state."""
        with self._stage(device, OPENING_ROUND, "open"):
            started, method = self._start(), self._job.method
            shard = self._data.train_shard(device)
            rank = room_of(self._job, device)
            initial = self._adopt(rank, DeviceState(), self.initial)
            names = drop(initial, self.layout.carried)
            scan = self._scan(shard, self.batches(device), names, OPENING_ROUND, device)
            memory: dict[str, Tensors] = {}
            if method.curriculum.opens:
                rng = self._rng("curriculum", device)
                memory["curriculum"] = method.curriculum.prepare(scan, rng, OPENING_ROUND)
            if method.mask.opens:
                memory["mask"] = method.mask.prepare(scan, self._rng("mask", device, OPENING_ROUND))
            scores = method.sharing.score(self.model, shard, self._rng("sensitivity", device))
            kept = self._store.save(device, OPENING_ROUND, DeviceState(memory=memory))
            layer_report = LayerReport(device, shard.num_samples, scores)
            seconds, received = time.perf_counter() - started, on_wire(self._job, initial, rank)
            opened = Opened(scan, memory, layer_report, self.model.work, seconds, received)
            report = opening_report(self._job, opened, self._name, attempt)
            return layer_report, replace(report, update_digest=kept, state_digest=kept)

    def train(
        self, plan: RoundPlan, device: int, broadcast: Broadcast, attempt: int = 0
    ) -> tuple[ClientUpdate, DeviceReport]:
        """One device-round from the state that the plan names and the broadcast; stores the state that it proposes."""
        with self._stage(device, plan.round, "train"):
            started = self._start()
            round_ = self._begin(plan, device, broadcast)
            session = self._session(round_)
            own = self._job.method.solver.solve(session, round_.memory["solver"])
            trained = session.trained
            update = self._finish(round_, trained, own)
            seconds = time.perf_counter() - started
            report = training_report(
                self._job, round_, trained, update, self.model.work, self.layout, self._name, attempt, seconds
            )
            return update, replace(report, update_digest=_digest_of(update) + self._kept, state_digest=self._kept)

    def _begin(self, plan: RoundPlan, device: int, broadcast: Broadcast) -> DeviceRound:
        """Loads the model as the device has it at the start of the round, and asks the parts what to train."""
        method, state = self._job.method, self._store.load(device, plan.states.get(device))
        rank = rank_of(self._job, device, state.memory.get("objective", {}))
        received = self._adopt(rank, state, broadcast.shared)
        personal = list(drop(received, broadcast.shared))
        shared = [name for name in broadcast.shared if name not in self.layout.carried]
        moving = method.peft.moving(shared, plan.round, plan.rounds)
        shard, batches = self._data.train_shard(device), self.batches(device)
        rng = self._rng("evidence", device, plan.round)
        evidence = method.aggregator.evidence(self.model, shard, shared, plan.round, rng)
        memory = {axis: dict(state.memory.get(axis, {})) for axis in AXES}
        scored = None
        if method.curriculum.due(memory["curriculum"], plan.round):
            scored = self._scan(shard, batches, drop(received, self.layout.carried), plan.round, device)
            rng = self._rng("curriculum", device)
            memory["curriculum"] = method.curriculum.prepare(scored, rng, plan.round)
        rng = self._rng("visible", device, plan.round)
        visible = method.curriculum.visible(memory["curriculum"], batches, plan.round, plan.rounds, rng)
        if self._job.stands_for is not None:
            visible = [batches[i] for i in sorted(set(self._walk(len(batches), plan.round, device)))]
        max_length = method.curriculum.max_length(plan.round, plan.rounds, self._job.max_length)
        seen = shard if max_length is None else shard.shortened(max_length)
        kept_before = may_move(memory["mask"], personal)
        scan, rng = self._scan(shard, visible, personal, plan.round, device), self._rng("mask", device, plan.round)
        memory["mask"] = method.mask.refresh(memory["mask"], scan, personal, rng)
        keep = may_move(memory["mask"], personal)
        down = on_wire(self._job, news(broadcast.shared, self.initial, moving), rank)
        return DeviceRound(
            plan,
            device,
            broadcast,
            received,
            shard,
            seen,
            batches,
            memory,
            visible,
            keep,
            kept_before,
            evidence,
            scored,
            rank,
            moving,
            num_bytes(down) + num_bytes(broadcast.hint),
        )

    def _session(self, round_: DeviceRound) -> LocalSession:
        """What the solver is lent for the round's training."""
        method, plan, device, shared = self._job.method, round_.plan, round_.device, round_.broadcast.shared
        return LocalSession(
            self.model,
            round_.seen,
            lambda epochs: self._steps(round_, epochs),
            self._job.local,
            plan.learning_rate,
            fitted(self._job, self.initial, round_.rank),
            round_.received,
            frozenset(shared),
            self._job.seed,
            ("dropout", plan.round, device),
            {**round_.keep, **self._standing_still(round_)},
            method.objective,
            round_.memory["objective"],
            round_.broadcast.hint,
            list(drop(self.initial, shared)) if method.mask.watches(round_.memory["mask"]) else (),
            round_.visible,
        )

    def _standing_still(self, round_: DeviceRound) -> Tensors:
        """No entry of the shared tensors that are not this round's may move."""
        return {
            name: torch.zeros_like(value, dtype=torch.bool)
            for name, value in round_.broadcast.shared.items()
            if name not in round_.moving and name not in self.layout.carried
        }

    def _finish(self, round_: DeviceRound, trained: Trained, own: Tensors) -> ClientUpdate:
        """Splits the trained values into what is sent, which is returned, and what stays, which is stored.

        own: the solver's memory.
        """
        self._kept = ""
        plan, shared, memory = round_.plan, round_.broadcast.shared, round_.memory | {"solver": own}
        values = self.model.read()
        if not (all_finite(values) and all_finite(own)):
            return self._nothing(round_, trained)
        delta = subtract({name: values[name] for name in shared if name in round_.moving}, round_.received)
        objective = self._job.method.objective
        remembered = objective.remember(memory["objective"], select(values, shared))
        memory["objective"], evidence = objective.finish(
            remembered, round_.broadcast.hint, delta, trained.num_steps, plan.learning_rate
        )
        rng = self._rng("evidence_after", round_.device, plan.round)
        aggregator = self._job.method.aggregator
        evidence |= aggregator.evidence_after(self.model, round_.shard, list(delta), round_.batches, rng)
        if trained.squares:
            memory["mask"] = self._job.method.mask.absorb(memory["mask"], trained.squares)
        self._kept = self._store.save(round_.device, plan.round, DeviceState(drop(values, shared), memory))
        rank = rank_of(self._job, round_.device, memory["objective"])
        sent = on_wire(self._job, delta, rank)
        return ClientUpdate(
            round_.device,
            round_.shard.num_samples,
            trained.num_steps,
            sent,
            {**round_.evidence, **evidence},
            rank,
            plan.learning_rate,
        )

    def _nothing(self, round_: DeviceRound, trained: Trained) -> ClientUpdate:
        """The update of a device whose training has diverged: it sends nothing, and stays as it was."""
        num_samples, rate = round_.shard.num_samples, round_.plan.learning_rate
        return ClientUpdate(
            round_.device, num_samples, trained.num_steps, {}, learning_rate=rate, rank=round_.rank, fault=NOT_FINITE
        )

    def evaluate_shared(self, chunks: Sequence[Tensor], broadcast: Broadcast) -> list[Predictions]:
        """The global model (shared tensors, the others as at the start) on chunks of rows of the test set."""
        self.model.set_rank(None)
        self.model.load({**self.initial, **broadcast.shared})
        test = self._data.test_set()
        return [self._predict(test, rows) for rows in chunks]

    def evaluate_personal(self, device: int, broadcast: Broadcast, states: States) -> Predictions:
        """The device's own model on its own test shard, in the shard's order. states: as `RoundPlan` has them."""
        with self._stage(device, broadcast.round, "evaluate"):
            state = self._store.load(device, states.get(device))
            rank = rank_of(self._job, device, state.memory.get("objective", {}))
            received = self._adopt(rank, state, broadcast.shared)
            solver, shard = self._job.method.solver, self._data.test_shard(device)
            own = solver.own(dict(state.memory.get("solver", {})))
            self.model.load(own)
            if not shard.num_samples:
                return Predictions.join([])
            solver.tune(self._tuning(device, broadcast, received | own))
            chunks = evaluation_chunks(shard, self._job.eval_batch_size)
            return in_row_order(chunks, [self._predict(shard, rows) for rows in chunks])

    def _tuning(self, device: int, broadcast: Broadcast, received: Tensors) -> LocalSession:
        """What a solver may train on before an evaluation: all of the device's batches, with the plain loss."""
        curriculum, batches, place = self._job.method.curriculum, self.batches(device), (device, broadcast.round)
        return LocalSession(
            self.model,
            self._data.train_shard(device),
            lambda epochs: chain.from_iterable(
                curriculum.pick(batches, self._rng("tune", *place, epoch)) for epoch in epochs
            ),
            self._job.local,
            self._job.local.learning_rate,
            self.initial,
            received,
            frozenset(broadcast.shared),
            self._job.seed,
            ("tune", *place),
        )

    def batches(self, device: int) -> list[Tensor]:
        """The device's fixed batches: a seeded split of its samples, the last one maybe short."""
        num_samples = len(self._data.train_rows[device])
        return fixed_batches(self._job.seed, device, num_samples, self._job.local.batch_size)

    def epochs(
        self, visible: Sequence[Tensor], round_: int, device: int, epochs: Iterable[int] | None = None
    ) -> Iterator[Tensor]:
        """The batches of some local epochs of a round (None: of all), in the order of training."""
        chosen = range(self._job.local.epochs) if epochs is None else epochs
        curriculum = self._job.method.curriculum
        return chain.from_iterable(
            curriculum.pick(visible, self._rng("epoch", device, round_, epoch)) for epoch in chosen
        )

    def _steps(self, round_: DeviceRound, epochs: Iterable[int]) -> Iterable[Tensor]:
        """The batches of some local epochs of a round, in order; of pooled data, all that the round trains on."""
        if self._job.stands_for is None:
            return self.epochs(round_.visible, round_.plan.round, round_.device, epochs)
        return [round_.batches[i] for i in self._walk(len(round_.batches), round_.plan.round, round_.device)]

    def _walk(self, num_batches: int, round_: int, device: int) -> list[int]:
        """The same of pooled data, as numbers of batches. Pass p is shuffled as epoch p of the run would be."""
        epochs, curriculum = self._job.local.epochs, self._job.method.curriculum
        assert self._job.stands_for is not None

        def shuffled(number: int) -> list[int]:
            rng = self._rng("epoch", device, *divmod(number, epochs))
            return [int(batch) for batch in curriculum.pick(torch.arange(num_batches).unbind(), rng)]

        return walk(steps_of(round_, num_batches, epochs, *self._job.stands_for), num_batches, shuffled)

    def _adopt(self, rank: int | None, state: DeviceState, shared: Tensors) -> Tensors:
        """Makes the model the device's own: its rank, its personal tensors, and what the server has. Returns them."""
        values = {**fitted(self._job, {**self.initial, **shared}, rank), **state.personal}
        self.model.set_rank(rank)
        self.model.load(values)
        return values

    @torch.no_grad()
    def _predict(self, shard: Shard, rows: Tensor) -> Predictions:
        self.model.train(False)
        batch = shard.batch(rows)
        out = self.model.forward(batch)
        predicted, losses, response = out.predicted.cpu(), out.losses.float().cpu(), out.response
        if response is not None:
            return Predictions(torch.ones_like(predicted), predicted, losses, response.counts.cpu())
        return Predictions(batch.labels.cpu(), predicted, losses)

    def _scan(
        self, shard: Shard, batches: Sequence[Tensor], names: Collection[str], round_: int, device: int
    ) -> FisherScan:
        """Squared gradients of the named tensors over the batches, lazy."""
        return FisherScan(self.model, shard, batches, names, self._rng("fisher", device, round_))

    def _rng(self, purpose: str, *where: int) -> torch.Generator:
        return seeds.generator(self._job.seed, purpose, *where)

    def _start(self) -> float:
        self.model.work = Work()
        return time.perf_counter()

    @contextmanager
    def _stage(self, device: int, round_: int, stage: str) -> Iterator[None]:
        """Device, round and stage travel with any error."""
        try:
            yield
        except FibecError:
            raise
        except Exception as error:
            raise DeviceError(device, round_, stage, f"{type(error).__name__}: {error}") from error


def _digest_of(update: ClientUpdate) -> str:
    """Of what the device sent."""
    return digest(with_prefix("delta", update.delta) | with_prefix("evidence", update.evidence))
