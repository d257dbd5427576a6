"""The server: holds the shared tensors, decides what is shared, and runs the aggregator."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from fibec_ray import seeds
from fibec_ray.errors import ConfigError, ModelError, RunError, round_name
from fibec_ray.learning.faults import decoded, fault_of, for_each_part
from fibec_ray.learning.job import Job
from fibec_ray.learning.planning import learning_rate
from fibec_ray.low_rank import pad
from fibec_ray.parts.blame import blamed
from fibec_ray.parts.sharing.base import Selection
from fibec_ray.tensors import Tensors, add, all_finite, clone, digest, drop, select, under_prefix, with_prefix
from fibec_ray.types import Asked, Broadcast, DeviceUpdate, LayerReport, Layout


class Past(NamedTuple):
    """What the server had before a round."""

    shared: Tensors
    control: Tensors
    privacy: Tensors


LOWER_RATES = "lower local.learning_rate, or the rate of a server optimiser"


class Server:
    """Call `setup` once, then `broadcast` and `absorb` in each round.

    initial: P^0, all trainable tensors.
    """

    def __init__(self, job: Job, initial: Tensors, layout: Layout):
        self._job, self._initial, self._layout = job, initial, layout
        self._shared: Tensors = {}
        self._control: Tensors = {}
        self._state: Tensors = {}
        self._past: dict[int, Past] = {}
        """what was sent in the earlier rounds in which devices that are still at work started"""
        self._privacy: Tensors = {}
        self._selection = Selection(frozenset())

    @blamed()
    def setup(self, reports: Sequence[LayerReport]) -> Selection:
        """Choose the shared tensors from the devices' reports, which are empty for methods without a setup phase."""
        method = self._job.method
        rng = seeds.generator(self._job.seed, "layers")
        selection = method.sharing.select(reports, self._layout, rng)
        if unknown := sorted(selection.names - self._layout.layers.keys()):
            raise ConfigError(
                f"method.sharing: {method.sharing.kind}: select shares '{unknown[0]}', which is not a trainable "
                "tensor; choose from layout.layers"
            )
        selection = replace(selection, names=selection.names | self._layout.server_only)
        self._check_solver(selection)
        self._selection = selection
        self._shared = select(self._initial, selection.names)
        self._control = method.objective.absorb(self.trained, {}, (), self._job.num_devices)
        self._state = method.aggregator.start(self._shared, self._job.num_devices)
        self._privacy = method.privacy.start()
        return selection

    def _check_solver(self, selection: Selection) -> None:
        """Raise ConfigError if the choice leaves the solver without the tensors it needs."""
        method = self._job.method
        solver, sharing = method.solver, method.sharing
        if "personal" in solver.needs and selection.names >= self._layout.layers.keys():
            raise ConfigError(
                f"method.solver: {solver.kind} trains personal tensors separately, but method.sharing "
                f"{sharing.kind} leaves none here (a verbaliser has no head); leave some personal, such as with "
                "method.sharing.last_blocks=1"
            )
        if "shared" in solver.needs and not selection.names:
            raise ConfigError(
                f"method.solver: {solver.kind} starts from shared tensors, but method.sharing {sharing.kind} shares "
                "nothing here; share more, or set method.solver=single"
            )

    def broadcast(self, round_: int) -> Broadcast:
        """What the server sends to devices that start in this round: the current one, or an earlier one with devices at
        work.
        """
        method, before = self._job.method, self._before(round_)
        plain = Broadcast(round_, before.shared, before.control, privacy=method.privacy.sent(before.privacy))
        if not method.uplink.encodes_down:
            return plain
        own = drop(before.shared, self._layout.server_only)
        payload = method.uplink.encode_down(own)
        return replace(plain, shared=drop(before.shared, own), payload=payload, encoded=tuple(own))

    def _before(self, round_: int) -> Past:
        return self._past.get(round_) or Past(self._shared, self._control, self._privacy)

    @blamed()
    def absorb(
        self,
        round_: int,
        updates: Iterable[DeviceUpdate],
        versions: Mapping[int, int] = MappingProxyType({}),
        under_way: Collection[int] = (),
    ) -> dict[int, str]:
        """Combine the round's updates, one at a time in cohort order. Without updates nothing changes, except for the
        noise of a privacy rule.

        versions: devices that started in an earlier round, and that round. under_way: the rounds in which devices that
        are still at work started; what was sent in them is kept.

        Returns device -> reason for each update that was left out as faulty. Raises RunError, leaving the server
        unchanged, if valid updates give values that are not finite.
        """
        method = self._job.method
        asked = {version: self.asked(version) for version in {round_, *versions.values()}}
        extras: list[Tensors] = []
        bad: dict[int, str] = {}

        def passing() -> Iterable[DeviceUpdate]:
            for sent in updates:
                version = versions.get(sent.device, round_)
                update = decoded(sent, asked[version], self._job)
                if (fault := fault_of(update, asked[version], self._job)) is not None:
                    bad[update.device] = fault
                    continue
                for_aggregator, for_objective = for_each_part(update, asked[version], self._job)
                extras.append(for_objective.extras)
                delta = pad(for_aggregator.delta, self._shared)
                delta = self._job.schedule.seen(delta, asked[version].shared, self._shared, round_ - version)
                yield replace(for_aggregator, delta=delta, staleness=round_ - version)

        rng = seeds.generator(self._job.seed, "privacy", round_)
        expected = self._job.schedule.num_updates(self._job.cohort_size)
        released, privacy = method.privacy.release(self._privacy, passing(), asked[round_].shared, expected, rng)
        try:
            delta, state = method.aggregator.combine(self._state, released)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise RunError(
                f"{round_name(round_)}: aggregator {method.aggregator.kind} found no solution ({error})"
            ) from error
        _check_shapes(f"method.aggregator: {method.aggregator.kind}: combine", delta, self._shared)
        shared = self._shared | add(delta, self._shared)
        control = method.objective.absorb(self.trained, self._control, extras, self._job.num_devices)
        shared = shared | method.peft.after_round(shared, control, round_, self._job.rounds)
        found = {"tensors": shared, "state": state, "control variates or scores": control, "clipping norm": privacy}
        for what, tensors in found.items():
            if not all_finite(tensors):
                raise RunError(
                    f"{round_name(round_)}: combining finite updates gave {what} of the server that are not finite; "
                    f"{LOWER_RATES}"
                )
        known = self._past | {round_: self._before(round_)}
        self._past = {version: known.get(version, Past({}, {}, {})) for version in sorted(set(under_way))}
        self._shared, self._state, self._privacy, self._control = shared, state, privacy, control
        return bad

    def asked(self, round_: int) -> Asked:
        """What the server expects of every update of devices that started in the round."""
        layout, (shared, control, _) = self._layout, self._before(round_)
        moving = self._job.method.peft.moving(drop(shared, layout.server_only), round_, self._job.rounds)
        return Asked(
            round_,
            learning_rate(self._job, round_),
            select(shared, moving),
            control,
            layout.layers,
            layout.heads,
            self._job.answers,
            drop(shared, moving),
        )

    @property
    def trained(self) -> Tensors:
        """The shared tensors that devices train."""
        return drop(self._shared, self._layout.server_only)

    def adapter(self) -> Tensors:
        """The global model: shared tensors as devices now receive them, and the initial values of all others."""
        return {**self._initial, **self._shared, **self._received()}

    def _received(self) -> Tensors:
        """The trained tensors as devices receive them, if they are encoded."""
        uplink = self._job.method.uplink
        return uplink.decode_down(uplink.encode_down(self.trained), self.trained) if uplink.encodes_down else {}

    def digest(self) -> str:
        """Digest of the current shared tensors."""
        return digest(self._shared)

    def state(self) -> Tensors:
        """Copy the server's state: `shared/NAME`, `control/NAME`, `aggregator/NAME`, `privacy/NAME`,
        `selection/scores`, and `past/ROUND/...` of earlier rounds that devices at work started in.

        P^0 and the layout follow from the job and are left out; `initial/digest` (16,) uint8 identifies P^0.
        """
        return clone(self.learnt | {"initial/digest": self._initial_digest})

    @property
    def learnt(self) -> Tensors:
        """The state without `initial/digest`, not copied."""
        scores = self._selection.scores
        return (
            with_prefix("shared", self._shared)
            | with_prefix("control", self._control)
            | with_prefix("aggregator", self._state)
            | with_prefix("privacy", self._privacy)
            | ({} if scores is None else {"selection/scores": scores})
            | {f"past/{name}": value for name, value in self._past_tensors()}
        )

    def _past_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for version, past in self._past.items():
            for what, tensors in past._asdict().items():
                yield from with_prefix(f"{version}/{what}", tensors).items()

    def restore(self, state: Tensors) -> Selection:
        """Restore a saved state instead of calling `setup`. Names keep the order of `state`, since sums depend on it.

        Raises ModelError if the initial tensors are not those of the run.
        """
        if not torch.equal(state["initial/digest"], self._initial_digest):
            raise ModelError(
                "backbone: the initial trainable tensors differ from those of the run so far; resume with the program "
                "versions that it started with (see RUN/checkpoints/run.json)"
            )
        self._shared = under_prefix("shared", state)
        self._control = under_prefix("control", state)
        self._state = under_prefix("aggregator", state)
        self._privacy = under_prefix("privacy", state)
        past = under_prefix("past", state)
        versions = dict.fromkeys(name.split("/", 1)[0] for name in past)
        self._past = {
            int(version): Past(*(under_prefix(f"{version}/{what}", past) for what in Past._fields))
            for version in versions
        }
        self._selection = Selection(frozenset(self._shared), state.get("selection/scores"))
        return self._selection

    @cached_property
    def _initial_digest(self) -> Tensor:
        return torch.tensor(list(bytes.fromhex(digest(self._initial))), dtype=torch.uint8)


def _check_shapes(what: str, found: Tensors, like: Tensors) -> None:
    """Raise ConfigError unless the step `found` fits the server's tensors `like`."""
    for name, value in found.items():
        there = like.get(name)
        if there is None or (value.shape, value.dtype) != (there.shape, there.dtype):
            expected = "no such tensor" if there is None else f"{tuple(there.shape)} values of type {there.dtype}"
            raise ConfigError(
                f"{what} returned {tuple(value.shape)} values of type {value.dtype} for '{name}', but the model has "
                f"{expected}; return a step with the names, shapes and types of the updates' deltas"
            )
