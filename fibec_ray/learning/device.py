"""A federated device's setup, training and evaluation, in any process.

Every method of the worker is a pure function of (job, data, plan, broadcast) and of the stored states that the plan
names. Results do not depend on where, or how often, it runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from fibec_ray.errors import DeviceError, FibecError
from fibec_ray.learning.device_round import DeviceRound
from fibec_ray.learning.evaluation import evaluation_chunks, in_row_order
from fibec_ray.learning.fitting import full_rank_of, on_wire, rank_of
from fibec_ray.learning.gpu_memory import peak_gpu_memory_bytes, what_to_lower
from fibec_ray.learning.host import Host
from fibec_ray.learning.mixing import Mixer
from fibec_ray.learning.records import DeviceSetup, Spent, peak_memory_bytes, setup_report, training_report
from fibec_ray.learning.session import LocalSession, Schedule
from fibec_ray.model_types import Shard, Work
from fibec_ray.parts.blame import what_failed
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import Tensors, digest, drop, num_bytes, with_prefix
from fibec_ray.types import (
    SETUP_ROUND,
    Broadcast,
    DeviceState,
    DeviceUpdate,
    LayerReport,
    Predictions,
    RoundPlan,
    States,
)
from fibec_ray.word_counts import exchanged_bytes


class DeviceWorker(Host):
    """Hosts federated devices, one at a time, on one model."""

    def setup(self, device: int, attempt: int = 0) -> tuple[LayerReport, DeviceReport]:
        """Run the setup phase: curriculum order, layer scores, the mask's first memory. Stores the device's state."""
        with self._stage(device, SETUP_ROUND, "setup"):
            started, method = self._start(), self.job.method
            shard = self.data.train_shard(device)
            rank = full_rank_of(self.job, device)
            initial = self.adopt(rank, DeviceState(), self.initial)
            scan = self.scan(shard, self.batches(device), drop(initial, self.layout.server_only), SETUP_ROUND, device)
            memory: dict[str, Tensors] = {}
            if method.curriculum.needs_setup:
                rng = self.rng("curriculum", device)
                memory["curriculum"] = method.curriculum.prepare(scan, rng, SETUP_ROUND)
            if method.mask.needs_setup:
                memory["mask"] = method.mask.prepare(scan, self.rng("mask", device, SETUP_ROUND))
            scores = method.sharing.score(self.model, shard, self.rng("sensitivity", device))
            if method.mask.needs_setup:
                session = self._on_all_data("warm_up", (device,), initial, frozenset())
                memory["mask"] = method.mask.warm_up(memory["mask"], session, self.job.local.learning_rate)
                self.model.load(initial)
            kept = self.store.save(device, SETUP_ROUND, DeviceState(memory=memory))
            layer_report = LayerReport(device, shard.num_samples, scores)
            down, up = num_bytes(on_wire(self.job, initial, rank)), scores.num_bytes
            if method.curriculum.pools_words:
                words_down, words_up = exchanged_bytes(self.data.num_words(device))
                down, up = down + words_down, up + words_up
            opened = DeviceSetup(scan, memory.get("curriculum", {}), layer_report, down, up)
            report = setup_report(self.job, opened, self._spent(started, attempt))
            return layer_report, replace(report, update_digest=kept, state_digest=kept)

    def train(
        self, plan: RoundPlan, device: int, broadcast: Broadcast, attempt: int = 0
    ) -> tuple[DeviceUpdate, DeviceReport]:
        """Train a device for one round, from the state that the plan names and the broadcast. Stores the proposed
        state.
        """
        with self._stage(device, plan.round, "train"):
            started = self._start()
            round_ = DeviceRound(self, plan, device, broadcast)
            session = round_.session()
            own = self.job.method.solver.solve(session, round_.memory["solver"])
            trained = session.trained
            update, kept = round_.finish(trained, own)
            report = training_report(round_, trained, update, self._spent(started, attempt))
            sent = digest(with_prefix("delta", update.delta) | with_prefix("evidence", update.extras))
            return update, replace(report, update_digest=sent + kept, state_digest=kept)

    def evaluate_shared(self, chunks: Sequence[Tensor], broadcast: Broadcast) -> list[Predictions]:
        """Evaluate the global model on chunks of test-set rows. Tensors that are not shared have their initial
        values.
        """
        self.model.set_rank(None)
        self.model.load({**self.initial, **self.decoded(broadcast).shared})
        test = self.data.test_set()
        return [self._predict(test, rows) for rows in chunks]

    def evaluate_personal(self, device: int, broadcast: Broadcast, states: States) -> Predictions:
        """Evaluate the device's own model on its own test shard, in the shard's order. states: as in `RoundPlan`."""
        with self._stage(device, broadcast.round, "evaluate"):
            shard = self.data.test_shard(device)
            if not shard.num_samples:
                return Predictions.join([])
            self.become(device, broadcast, states)
            mixer = self._mixer(device, states)
            chunks = evaluation_chunks(shard, self.job.eval_batch_size)
            return in_row_order(chunks, [self._predict(shard, rows, mixer) for rows in chunks])

    @torch.no_grad()
    def _mixer(self, device: int, states: States) -> Mixer | None:
        """What mixes the device's models for each sample; None if one model scores all samples."""
        solver = self.job.method.solver
        if not solver.num_references:
            return None
        memory = dict(self.store.load(device, states.get(device)).memory.get("solver", {}))
        if not memory:  # it never took part
            return None
        shard = self.data.train_shard(device)
        rows = torch.randperm(shard.num_samples, generator=self.rng("references", device))[: solver.num_references]
        self.model.train(False)
        return Mixer(solver, self.model, memory, shard, rows)

    def become(self, device: int, broadcast: Broadcast, states: States) -> None:
        """Makes the model the device's own, as it is evaluated: its personal tensors, its solver's, and what tuning on
        its training data adds. states: as `RoundPlan` has them."""
        state, broadcast = self.store.load(device, states.get(device)), self.decoded(broadcast)
        rank = rank_of(self.job, device, state.memory.get("objective", {}))
        received = self.adopt(rank, state, broadcast.shared)
        solver = self.job.method.solver
        own = solver.own(dict(state.memory.get("solver", {})))
        self.model.load(own)
        solver.tune(self.tuning(device, broadcast, received | own))

    def tuning(self, device: int, broadcast: Broadcast, received: Tensors) -> LocalSession:
        """The session for a solver's tuning before an evaluation: all of the device's batches, with the plain loss."""
        return self._on_all_data("tune", (device, broadcast.round), received, frozenset(broadcast.shared))

    def _on_all_data(
        self, purpose: str, place: tuple[int, ...], received: Tensors, shared: frozenset[str]
    ) -> LocalSession:
        """A session on all batches of the device `place[0]`, with the plain loss, at the rate of the first round."""
        device, curriculum = place[0], self.job.method.curriculum
        batches = self.batches(device)
        return LocalSession(
            model=self.model,
            shard=self.data.train_shard(device),
            schedule=Schedule(
                batches=lambda epochs: chain.from_iterable(
                    curriculum.pick(batches, self.rng(purpose, *place, epoch)) for epoch in epochs
                ),
                settings=self.job.local,
                rate=self.job.local.learning_rate,
                seed=self.job.seed,
                place=(purpose, *place),
            ),
            initial=self.initial,
            received=received,
            shared=shared,
        )

    @torch.no_grad()
    def _predict(self, shard: Shard, rows: Tensor, mixer: Mixer | None = None) -> Predictions:
        self.model.train(False)
        batch = shard.batch(rows)
        out = self.model.forward(batch) if mixer is None else mixer.outputs(batch)
        truth, num_tokens = out.likelihood.truth(batch.labels).cpu(), out.likelihood.num_tokens
        predicted, losses = out.predicted.cpu(), out.losses.float().cpu()
        return Predictions(truth, predicted, losses, None if num_tokens is None else num_tokens.cpu())

    def _start(self) -> float:
        self.model.work = Work()
        return time.perf_counter()

    def _spent(self, started: float, attempt: int) -> Spent:
        seconds = time.perf_counter() - started
        peaks = peak_memory_bytes(), peak_gpu_memory_bytes()
        return Spent(self.model.work.flops, seconds, self.place.name, attempt, *peaks)

    @contextmanager
    def _stage(self, device: int, round_: int, stage: str) -> Iterator[None]:
        """Add device, round and stage to any error."""
        try:
            yield
        except FibecError:
            raise
        except torch.OutOfMemoryError as error:
            raise DeviceError(device, round_, stage, what_to_lower(error)) from error
        except Exception as error:
            raise DeviceError(device, round_, stage, what_failed(error)) from error
