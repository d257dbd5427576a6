"""Follows a method's parts on made-up tensors, to find the passes they make and the state they keep.

Parts get zeros of the right shapes instead of trained values, and stand-ins instead of a model's passes (`trial.py`).
Passes that parts make on the model themselves are declared by them (`passes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fibec_ray import seeds
from fibec_ray.errors import ConfigError, UserError
from fibec_ray.learning.job import Job
from fibec_ray.learning.planning import learning_rate
from fibec_ray.learning.server import Server
from fibec_ray.models.outline import without_torch_log
from fibec_ray.parts.blame import what_failed
from fibec_ray.parts.part import Part, Passes
from fibec_ray.preflight.anatomy import Anatomy
from fibec_ray.preflight.trial import Ask, Training, TrialScan, TrialSession, TrialShard, blank
from fibec_ray.tensors import Tensors, drop, num_bytes, select, under_prefix, with_prefix
from fibec_ray.types import Asked, DeviceUpdate, LayerReport

T = TypeVar("T")

FIRST = 8
"""Participations of a device that are followed. Later ones repeat those of the second half, in turn."""
SMALL = 2**25
"""Up to this size in bytes made-up trainable tensors are real. Larger ones are fake and use no memory."""
TINY = 2**20
"""The same for the server's aggregation, which can be slow on real tensors. On fake ones every operation takes about
half a millisecond."""


@dataclass(frozen=True)
class Participation:
    """What a device does in its n-th round in a cohort; the same for all devices."""

    trainings: Sequence[Training]
    num_teachers: int
    scans: Sequence[Ask]
    """scans of the mask over the visible samples"""
    squares: bool
    """True if training keeps squared gradients of single samples"""
    memory: Tensors
    """state that parts keep on the device, except the curriculum's"""


@dataclass(frozen=True)
class Rehearsed:
    """What a device does, from the setup phase on."""

    setup_scans: Sequence[Ask]
    """scans of the mask"""
    setup_trainings: Sequence[Training]
    """trainings of the mask"""
    setup_memory: Tensors
    """stored after the setup phase"""
    participations: Sequence[Participation]
    tuning: Sequence[Training]
    """trainings before the device's own model is scored"""
    control: Tensors
    """what the server sends from round 1 on"""


class Rehearsal:
    """A method on made-up tensors. server: set up with P^0 and made-up scores. Raises ConfigError if a part fails
    on them.
    """

    def __init__(self, job: Job, anatomy: Anatomy):
        self.job, self.anatomy = job, anatomy
        planned = {axis: part.as_planned() for axis, part in job.method.parts.items()}
        self.method = job.method.model_copy(update=planned)
        try:
            self.server = self._opened_server(anatomy.initial)
        except ConfigError:
            raise
        except Exception:  # some part depends on values
            self.server = self._opened_server(blank(anatomy.initial))
        self.shared = under_prefix("shared", self.server.learnt)
        self.control = under_prefix("control", self.server.learnt)
        self.personal = drop(anatomy.initial, self.shared)

    def participation(self, number: int) -> Participation:
        """A device's participation. number: from 0."""
        known = self.found.participations
        half = len(known) // 2
        return known[number if number < len(known) else half + (number - half) % (len(known) - half)]

    @cached_property
    def found(self) -> Rehearsed:
        """The result of following a device, computed once."""
        return self._tried(self._rehearse)

    @cached_property
    def holds_single_gradients(self) -> bool:
        """True if some pass holds the gradients of single samples."""
        job, taken = self.job, self.participation(0)
        curriculum = self.method.curriculum
        scans = [*self.found.setup_scans, *taken.scans]
        if curriculum.needs_setup or curriculum.due({}, job.rounds - 1):
            scans += self.order(torch.ones(1), [torch.zeros(1, dtype=torch.int64)], job.rounds - 1)[1]
        guarded = self.method.privacy.guard() is not None
        return (
            guarded
            or taken.squares
            or any(scans)
            or any(one.single_gradients for one in self.round_passes(job.rounds - 1))
        )

    @property
    def score_passes(self) -> Sequence[Passes]:
        """Passes of the sharing rule in the setup phase."""
        sharing = self.method.sharing
        with named(sharing, "passes"):
            return list(sharing.passes(self.job.answers))

    def round_passes(self, round_: int) -> Sequence[Passes]:
        """Passes of the aggregator on a device in this round."""
        aggregator = self.method.aggregator
        with named(aggregator, "passes"):
            return list(aggregator.passes(round_, self.job.answers))

    def aggregator_states(self) -> tuple[Tensors, Tensors]:
        """The aggregator's state after two devices have taken part, and after two more.

        The initial state twice, if the aggregator depends on values.
        """
        return self._combined[:2]

    @property
    def stepped(self) -> frozenset[str]:
        """The tensors that the aggregator changes, whether devices send them or not."""
        return self._combined[2]

    @cached_property
    def _combined(self) -> tuple[Tensors, Tensors, frozenset[str]]:
        """`aggregator_states` and `stepped`."""
        aggregator, start = self.method.aggregator, under_prefix("aggregator", self.server.learnt)
        try:
            with without_torch_log(), self._fake_above(TINY):
                states, step = [aggregator.start(blank(self.shared), self.job.num_devices)], Tensors()
                for devices in ((0, 1), (0, 1), (2, 3)):
                    step, state = aggregator.combine(states[-1], map(self._update, devices))
                    states.append(state)
                return states[-2], states[-1], frozenset(step)
        except ConfigError:
            raise  # a hook returned a wrong type
        except Exception:
            return start, start, frozenset()

    def _update(self, device: int) -> DeviceUpdate:
        asked = self.server.asked(0)
        update = DeviceUpdate(device, 1, 1, blank(asked.shared), learning_rate=asked.learning_rate)
        extras = self.method.aggregator.expected_extras(asked, update).items()
        return replace(update, extras={name: torch.zeros(one.shape, dtype=one.dtype) for name, one in extras})

    def extras_bytes(self, asked: Asked, update: DeviceUpdate) -> int:
        """Bytes of an update's extras."""
        total = 0
        for part in (self.method.aggregator, self.method.objective):
            with named(part, "expected_extras"):
                total += sum(one.num_bytes for one in part.expected_extras(asked, update).values())
        with named(self.method.privacy, "expected_extras"):
            return total + sum(one.num_bytes for one in self.method.privacy.expected_extras().values())

    @property
    def privacy_bytes_down(self) -> int:
        """Bytes that the privacy rule sends to a device in a round."""
        privacy = self.method.privacy
        with named(privacy, "start or sent"):
            return num_bytes(privacy.sent(privacy.start()))

    def delta_bytes(self, delta: Tensors) -> int:
        """Bytes of an update's delta as it is sent."""
        uplink = self.method.uplink
        if not uplink.encodes:
            return num_bytes(delta)
        with named(uplink, "expected_payload"):
            return sum(one.num_bytes for one in uplink.expected_payload(delta).values())

    def encoded_bytes_down(self, own: Tensors) -> int:
        """Bytes of what the uplink encodes for the way to devices. own: tensors of the shapes that they train."""
        with named(self.method.uplink, "expected_down"):
            return sum(one.num_bytes for one in self.method.uplink.expected_down(own).values())

    def order(
        self, lengths: Tensor, batches: Sequence[Tensor], round_: int, device: int = 0
    ) -> tuple[Tensors, Sequence[Ask]]:
        """The curriculum's memory for samples of these lengths, and the passes it makes."""
        curriculum = self.method.curriculum
        zero, rng = torch.zeros(()), seeds.generator(self.job.seed, "curriculum", device)
        scan = self._scan(lengths, batches, {name: zero.expand(value.shape) for name, value in self._trained.items()})
        with named(curriculum, "prepare"):
            return curriculum.prepare(scan, rng, round_), scan.asked

    def _fake_above(self, num_bytes_: int) -> AbstractContextManager[Any]:
        """Makes new tensors fake, unless the run's are so small that real ones cost less."""
        if num_bytes(self.anatomy.initial) > num_bytes_:
            return FakeTensorMode(allow_non_fake_inputs=True)
        return nullcontext()

    def _tried(self, work: Callable[[], T]) -> T:
        """Run the work with fake tensors if they are large, unless a part depends on their values."""
        if num_bytes(self.anatomy.initial) > SMALL:
            with suppress(Exception), without_torch_log(), FakeTensorMode(allow_non_fake_inputs=True):
                return work()
        return work()

    def _opened_server(self, initial: Tensors) -> Server:
        server = Server(self.job, initial, self.anatomy.layout)
        scores = self.job.method.sharing.example_scores(self.anatomy.layout.num_layers)
        server.setup([LayerReport(0, 1, scores)])
        return server

    def _rehearse(self) -> Rehearsed:
        """A device's setup and first participations, in the order of `DeviceWorker`."""
        method, mask = self.method, self.method.mask
        scan, kept, warming = self._small_scan(self._trained), dict[str, Tensors](), self._session()
        if mask.needs_setup:
            with named(mask, "prepare or warm_up"):
                memory = mask.prepare(scan, self._rng())
                kept["mask"] = mask.warm_up(memory, warming, learning_rate(self.job, 0))
        setup = _flat(kept)
        found, control = list[Participation](), blank(self.control)
        for round_ in range(min(FIRST, self.job.rounds)):
            one, sent = self._take_part(kept, control, round_)
            found.append(one)
            if len(found) == 1:
                with named(method.objective, "absorb"):
                    control = method.objective.absorb(blank(self.server.trained), control, [sent], self.job.num_devices)
        tuned = self._session()
        with named(method.solver, "tune"):
            method.solver.tune(tuned)
        return Rehearsed(scan.asked, warming.trainings, setup, found, tuned.trainings, control)

    def _take_part(self, kept: dict[str, Tensors], control: Tensors, round_: int) -> tuple[Participation, Tensors]:
        """One participation. kept: memories by axis, updated in place. Also returns what the objective sends.

        round_: its number. Tensors that are trained in turn are encoded in turn.
        """
        anatomy, mask, objective, solver = self.anatomy, self.method.mask, self.method.objective, self.method.solver
        memory, values, scan = dict(kept.get("objective", {})), blank(anatomy.initial), self._small_scan(self.personal)
        with named(mask, "refresh"):
            kept["mask"] = mask.refresh(kept.get("mask", {}), scan, list(self.personal), self._rng())
            squares = mask.watches(kept["mask"])
        session = self._session()
        with named(solver, "solve"):
            kept["solver"] = solver.solve(session, kept.get("solver", {}))
        shared_model = any(not one.own_model for one in session.trainings)
        params = {name: nn.Parameter(value) for name, value in select(values, self._trained).items()}
        for param in params.values():
            param.grad = torch.zeros_like(param)
        asked, rate = self.server.asked(0), learning_rate(self.job, 0)
        delta = select(values, asked.shared)
        with named(objective, "teachers"):
            teachers = objective.teachers(values, memory) if shared_model else ()
        with named(objective, "weigh, correct, remember or finish"):
            objective.weigh(torch.zeros(2))
            objective.correct(params, memory, control)
            remembered = objective.remember(memory, select(values, self.shared))
            kept["objective"], sent = objective.finish(remembered, control, delta, 1, rate)
        update = DeviceUpdate(0, 1, 1, delta, sent, learning_rate=rate)
        _refuse_others(objective, "finish", sent, "expected_extras", objective.expected_extras(asked, update))
        turn = select(values, self.server.asked(round_).shared)
        self._protect(turn)
        self._encode(kept, turn)
        if squares:
            with named(mask, "absorb"):
                kept["mask"] = mask.absorb(kept["mask"], blank(self.personal))
        return Participation(session.trainings, len(teachers), scan.asked, squares, _flat(kept)), sent

    def _protect(self, delta: Tensors) -> None:
        """Let the privacy rule change a delta, on the device and on the server."""
        privacy, cohort_size = self.method.privacy, self.job.cohort_size
        with named(privacy, "start, sent or protect"):
            state = privacy.start()
            changed, extras = privacy.protect(delta, privacy.sent(state), cohort_size, self._rng())
        _refuse_others(privacy, "protect", extras, "expected_extras", privacy.expected_extras())
        with named(privacy, "release"):
            privacy.release(state, [DeviceUpdate(0, 1, 1, changed, extras)], delta, cohort_size, self._rng())

    def _encode(self, kept: dict[str, Tensors], delta: Tensors) -> None:
        """Encode a delta and what the server sends. kept: memories by axis, updated in place."""
        uplink = self.method.uplink
        if uplink.encodes:
            with named(uplink, "encode"):
                payload, kept["uplink"] = uplink.encode(delta, kept.get("uplink", {}), self._rng())
            _refuse_others(uplink, "encode", payload, "expected_payload", uplink.expected_payload(delta))
        if uplink.encodes_down:
            own = blank(self.server.trained)
            with named(uplink, "encode_down"):
                payload = uplink.encode_down(own)
            _refuse_others(uplink, "encode_down", payload, "expected_down", uplink.expected_down(own))

    def _session(self) -> TrialSession:
        server_only, epochs, values = (
            self.anatomy.layout.server_only,
            self.job.local.epochs,
            blank(self.anatomy.initial),
        )
        return TrialSession(values, values, frozenset(self.shared), server_only, epochs)

    @property
    def _trained(self) -> Tensors:
        return drop(self.anatomy.initial, self.anatomy.layout.server_only)

    def _small_scan(self, like: Tensors) -> TrialScan:
        return self._scan(torch.ones(1, dtype=torch.int64), [torch.zeros(1, dtype=torch.int64)], blank(like))

    def _scan(self, lengths: Tensor, batches: Sequence[Tensor], diagonal: Tensors) -> TrialScan:
        shard = TrialShard(self.anatomy.batch, lengths)
        return TrialScan(self.anatomy.model, shard, batches, diagonal, self._rng())

    def _rng(self) -> torch.Generator:
        return seeds.generator(self.job.seed, "preflight")


def _flat(kept: Mapping[str, Tensors]) -> Tensors:
    """Memories with the names of a device's stored state, without values."""
    named = {name: value for axis, memory in kept.items() for name, value in with_prefix(axis, memory).items()}
    return {f"memory/{n}": torch.empty(v.shape, dtype=v.dtype, device="meta") for n, v in named.items()}


def _refuse_others(part: Part, hook: str, sent: Tensors, declaring: str, declared: Mapping[str, object]) -> None:
    """Raise ConfigError if a hook sends other tensors than the part declares."""
    if wrong := sent.keys() ^ declared.keys():
        raise ConfigError(
            f"method.{axis_of(part)}: {part.kind}: {hook} sends {sorted(sent) or 'nothing'}, but {declaring} names "
            f"{sorted(declared) or 'nothing'}; name the same tensors in both (such as '{min(wrong)}')"
        )


def axis_of(part: Part) -> str:
    """The name of a part's axis."""
    return type(part).__mro__[type(part).__mro__.index(Part) - 1].__name__.lower()


@contextmanager
def named(part: Part, hook: str) -> Iterator[None]:
    """Add the part and hook to any error in the part's own code, as ConfigError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(
            f"method.{axis_of(part)}: {part.kind}: {hook} failed while the run was planned, on made-up tensors "
            f"({what_failed(error)}); it must work on zeros of the right shapes, or "
            "as_planned must return a part that does"
        ) from error
