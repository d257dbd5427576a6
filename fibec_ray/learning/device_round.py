"""One device's work in one round: starting point, solver session, update and new state."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.errors import ConfigError
from fibec_ray.learning.batches import until_drop_out
from fibec_ray.learning.faults import NOT_FINITE
from fibec_ray.learning.fitting import fitted, on_wire, rank_of, to_send
from fibec_ray.learning.guarded_steps import Guard
from fibec_ray.learning.host import Host
from fibec_ray.learning.local_update import Moves, Terms, Trained
from fibec_ray.learning.session import LocalSession, Schedule
from fibec_ray.method import AXES
from fibec_ray.parts.mask.base import may_move
from fibec_ray.tensors import Tensors, all_finite, drop, num_bytes, select, subtract
from fibec_ray.types import Broadcast, DeviceState, DeviceUpdate, RoundPlan


class DeviceRound:
    """Call `session`, then `finish`, once each.

    The constructor loads the device's values into the host's model and asks the parts what to train.
    """

    scored: FisherScan | None = None
    """the scan that the curriculum scored samples with in this round, if it did"""

    def __init__(self, host: Host, plan: RoundPlan, device: int, broadcast: Broadcast):
        method, state = host.job.method, host.store.load(device, plan.states.get(device))
        sent, broadcast = broadcast, host.decoded(broadcast)
        self.host, self.plan, self.device, self.broadcast = host, plan, device, broadcast
        self.memory = {axis: dict(state.memory.get(axis, {})) for axis in AXES}
        """memory by axis"""
        self.rank = rank_of(host.job, device, self.memory["objective"])
        """rank of the device's adapter; None: devices do not differ"""
        self.received = host.adopt(self.rank, state, broadcast.shared)
        """all trainable values, shared and personal"""
        self.personal = list(drop(self.received, broadcast.shared))
        shared = [name for name in broadcast.shared if name not in host.layout.server_only]
        self.moving = method.peft.moving(shared, plan.round, plan.rounds)
        """shared tensors that are trained and sent in this round"""
        self.shard, self.batches = host.data.train_shard(device), host.batches(device)
        rng = host.rng("evidence", device, plan.round)
        self.extras = method.aggregator.extras_before(host.model, self.shard, shared, plan.round, rng)
        self.visible = self._order()
        max_length = method.curriculum.max_length(plan.round, plan.rounds, host.job.max_length)
        self.seen = self.shard if max_length is None else self.shard.shortened(max_length)
        """the shard for local training steps; its samples may be truncated"""
        self.kept_before = may_move(self.memory["mask"], self.personal)
        """`keep` from the device's last participation; empty at the first"""
        self.keep = self._mask()
        down = on_wire(host.job, to_send(sent.shared, host.initial, self.moving), self.rank)
        self.bytes_down = num_bytes(down) + num_bytes(sent.control) + num_bytes(sent.payload) + num_bytes(sent.privacy)

    def _order(self) -> list[Tensor]:
        """The batches that the curriculum shows in this round."""
        host, plan, curriculum = self.host, self.plan, self.host.job.method.curriculum
        if curriculum.due(self.memory["curriculum"], plan.round):
            names = drop(self.received, host.layout.server_only)
            self.scored = host.scan(self.shard, self.batches, names, plan.round, self.device)
            rng = host.rng("curriculum", self.device)
            self.memory["curriculum"] = curriculum.prepare(self.scored, rng, plan.round)
        if host.job.pooled_cohort is not None:
            return [self.batches[i] for i in sorted(set(self._walk()))]
        rng = host.rng("visible", self.device, plan.round)
        visible = curriculum.visible(self.memory["curriculum"], self.batches, plan.round, plan.rounds, rng)
        if not visible:
            raise ConfigError(f"method.curriculum: {curriculum.kind}: visible returned no batch; return at least one")
        return self._until_drop_out(visible)

    def _until_drop_out(self, visible: list[Tensor]) -> list[Tensor]:
        """The batches that the device trains on: fewer if it drops out in mid-round."""
        if (share := self.plan.shares.get(self.device, 1.0)) == 1.0:
            return visible
        return until_drop_out(visible, share, self.host.rng("drop_out", self.device, self.plan.round))

    def _mask(self) -> Tensors:
        """Which entries of personal tensors may move."""
        host, place = self.host, (self.plan.round, self.device)
        scan = host.scan(self.shard, self.visible, self.personal, *place)
        rng = host.rng("mask", self.device, self.plan.round)
        self.memory["mask"] = host.job.method.mask.refresh(self.memory["mask"], scan, self.personal, rng)
        keep = may_move(self.memory["mask"], self.personal)
        for name, entries in keep.items():
            if entries.dtype != torch.bool or entries.shape != self.received[name].shape:
                raise ConfigError(
                    f"method.mask: {host.job.method.mask.kind}: 'kept/{name}' has {tuple(entries.shape)} values of "
                    f"type {entries.dtype}; make it {tuple(self.received[name].shape)} values of type torch.bool"
                )
        return keep

    def session(self) -> LocalSession:
        """The session in which the solver trains."""
        host, method, shared = self.host, self.host.job.method, self.broadcast.shared
        watches = method.mask.watches(self.memory["mask"])
        return LocalSession(
            model=host.model,
            shard=self.seen,
            schedule=Schedule(
                batches=self._epochs,
                settings=host.job.local,
                rate=self.plan.learning_rate,
                seed=host.job.seed,
                place=("dropout", self.plan.round, self.device),
            ),
            initial=fitted(host.job, host.initial, self.rank),
            received=self.received,
            shared=frozenset(shared),
            terms=Terms(method.objective, self.memory["objective"], self.broadcast.control),
            moves=Moves(
                keep={**self.keep, **self._frozen_masks()}, watch=list(drop(host.initial, shared)) if watches else ()
            ),
            guard=self._guard(),
            visible=self.visible,
        )

    def _guard(self) -> Guard | None:
        """The protection of each training step, by the method's privacy rule."""
        rule = self.host.job.method.privacy.guard()
        return None if rule is None else Guard(rule, self.host.rng("steps", self.device, self.plan.round))

    def _epochs(self, epochs: Iterable[int]) -> Iterable[Tensor]:
        """The batches of some local epochs, in order; with pooled data, all batches of the round."""
        if self.host.job.pooled_cohort is None:
            return self.host.epochs(self.visible, self.plan.round, self.device, epochs)
        return [self.batches[i] for i in self._walk()]

    def _walk(self) -> list[int]:
        return self.host.walk(len(self.batches), self.plan.round, self.device)

    def _frozen_masks(self) -> Tensors:
        """Masks that freeze the shared tensors outside this round's."""
        still = drop(drop(self.broadcast.shared, self.moving), self.host.layout.server_only)
        return {name: torch.zeros_like(value, dtype=torch.bool) for name, value in still.items()}

    def finish(self, trained: Trained, own: Tensors) -> tuple[DeviceUpdate, str]:
        """Split the trained values into the update to send and the state to keep, which is stored.

        own: the solver's memory. Returns the update and the digest of the stored state, '' if nothing was stored. A
        device whose training diverged sends nothing and proposes no state.
        """
        host, plan, memory = self.host, self.plan, self.memory | {"solver": own}
        method = host.job.method
        values = method.peft.folded(host.model.read())
        if not all_finite(values):
            return self._update(trained, {}, fault=NOT_FINITE), ""
        shared = select(values, self.broadcast.shared)
        sent = {name: values[name] for name in self.broadcast.shared if name in self.moving}
        delta = subtract(sent, self.received)
        remembered = method.objective.remember(memory["objective"], shared)
        memory["objective"], extras = method.objective.finish(
            remembered, self.broadcast.control, delta, trained.num_steps, plan.learning_rate
        )
        rng = host.rng("evidence_after", self.device, plan.round)
        extras |= method.aggregator.extras_after(host.model, self.shard, list(delta), self.batches, rng)
        if trained.squares:
            memory["mask"] = method.mask.absorb(memory["mask"], trained.squares)
        self.rank = rank_of(host.job, self.device, memory["objective"])
        rng = host.rng("privacy", self.device, plan.round)
        payload, own_extras = method.privacy.protect(
            on_wire(host.job, delta, self.rank), self.broadcast.privacy, host.job.cohort_size, rng
        )
        extras |= own_extras
        if method.uplink.encodes:
            rng = host.rng("uplink", self.device, plan.round)
            payload, memory["uplink"] = method.uplink.encode(payload, memory["uplink"], rng)
        if not all(map(all_finite, memory.values())):
            return self._update(trained, {}, fault=NOT_FINITE), ""
        kept = host.store.save(self.device, plan.round, DeviceState(drop(values, shared), memory))
        return self._update(trained, payload, self.extras | extras), kept

    def _update(
        self, trained: Trained, payload: Tensors, extras: Tensors | None = None, fault: str | None = None
    ) -> DeviceUpdate:
        return DeviceUpdate(
            device=self.device,
            num_samples=self.shard.num_samples,
            num_steps=trained.num_steps,
            delta=payload,
            extras=extras or {},
            rank=self.rank,
            learning_rate=self.plan.learning_rate,
            fault=fault,
        )
