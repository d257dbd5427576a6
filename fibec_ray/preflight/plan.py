"""The plan of a run: what it needs, where, and whether that is available.

Memory and disk are in bytes, times in seconds, work in floating point operations as in the round log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from fibec_ray.config.experiment import Experiment
from fibec_ray.errors import CapacityError, FleetError
from fibec_ray.fleets.placement import UNFORESEEN, Need, Placement, actors_on_a_gpu, decide, gpu_part
from fibec_ray.learning.job import Job
from fibec_ray.models import backends as bases
from fibec_ray.models.settings import Backend, BackendChoice
from fibec_ray.preflight import disk, memory
from fibec_ray.preflight.anatomy import Anatomy
from fibec_ray.preflight.disk import TOKENIZER_BYTES, Disk
from fibec_ray.preflight.exchange import Exchange
from fibec_ray.preflight.foresight import plans_of
from fibec_ray.preflight.memory import ActorMemory
from fibec_ray.preflight.rehearsal import Rehearsal
from fibec_ray.preflight.room import Room
from fibec_ray.preflight.samples import Samples
from fibec_ray.tensors import num_bytes
from fibec_ray.types import RoundPlan


@dataclass(frozen=True)
class ModelSizes:
    """Numbers of entries. frozen_bytes: of the base, which all processes of a node share on a CPU."""

    parameters: int
    trainable: int
    shared: int
    personal: int
    frozen_bytes: int
    dtype: str
    """of the frozen base"""


@dataclass(frozen=True)
class Seats:
    """Where devices run. cohort_per_actor: most devices of a cohort that one actor trains."""

    placement: Placement
    cpus: float
    """of the cluster, or of this machine"""
    lanes: int
    devices_per_actor: int
    cohort_per_actor: int


@dataclass(frozen=True)
class Memory:
    """total: all processes of the run, including base weights. prepare: for preparing the base."""

    need: Need
    """passed to the fleet"""
    actor: ActorMemory
    base_per_node: int
    others: int
    """the server, Ray's own processes, and messages in transit"""
    total: int
    prepare: int
    available: int
    sharing: int
    """most actors on one GPU; 0 without GPUs"""
    gpu_needed: int
    """on one GPU, for all actors that share it"""
    gpu_available: int | None
    """None: unknown, or no GPU"""
    gpu_each: int | None
    """the most that one of these actors may use; None: unknown, or no GPU"""
    most_lanes: int | None
    """about how many lanes the GPU has room for; None: unknown, no GPU, or no lanes"""


@dataclass(frozen=True)
class Plan:
    """backend_choice: backend of the base weights and the reason; None without base weights."""

    experiment: str
    method: str
    model: ModelSizes
    seats: Seats
    memory: Memory
    disk: Disk
    room: Room
    backend_choice: BackendChoice | None


def make_plan(
    experiment: Experiment, rehearsal: Rehearsal, samples: Samples, room: Room, data_bytes: int, config_bytes: int
) -> Plan:
    """Plan a run. data_bytes: of the encoded data on disk. config_bytes: of the experiment as text.

    Raises CapacityError if no placement is possible. Call `refuse` for all other limits.
    """
    job, anatomy, exchange = rehearsal.job, rehearsal.anatomy, Exchange(rehearsal)
    plans = plans_of(rehearsal, samples)
    past = _past_bytes(exchange, plans)
    needed, seats, backend_choice = _memory_and_seats(experiment, exchange, samples, room, past)
    sizes = _sizes(job, anatomy, exchange)
    taken = Disk(
        0 if room.base_is_there or not job.backbone.has_base else anatomy.all_base_bytes,
        data_bytes,
        disk.state_files(job, experiment.checkpoint, exchange, samples, [plan.cohort for plan in plans]),
        disk.checkpoint_files(job, experiment.checkpoint, exchange, config_bytes, past),
        disk.log_bytes(job, samples, anatomy.layout.num_layers, config_bytes),
        num_bytes(anatomy.initial) + TOKENIZER_BYTES * anatomy.model.vocab_size,
    )
    return Plan(experiment.name, experiment.method.name, sizes, seats, needed, taken, room, backend_choice)


def _backend_choice(job: Job, anatomy: Anatomy, room: Room, gpus: float, beside: int) -> BackendChoice | None:
    """The backend that an actor with this share of GPUs will choose. beside: its GPU memory without the base.

    Raises ModelError if the backend is not available.
    """
    if not job.backbone.has_base:
        return None
    backend, free, gpu = job.backbone.base_backend, room.resources.memory_bytes, room.resources.gpu_memory
    if gpus and gpu is None:
        unknown = "each actor decides by its GPU, whose memory is not known here"
        return BackendChoice(backend, unknown if backend == "auto" else bases.CONFIGURED)
    own = max(0, int(gpu * min(1.0, gpus)) - bases.CONTEXT_BYTES) if gpus and gpu is not None else None
    # Assume that a cluster's memory is divided equally; a backend set by name may find a larger node.
    host = free // room.num_nodes if backend == "auto" else free
    others = (gpu or 0,) * (int(gpus) - 1)
    return bases.choose(backend, anatomy.all_base_bytes, bases.Room(own, host, others, beside))


def _sizes(job: Job, anatomy: Anatomy, exchange: Exchange) -> ModelSizes:
    trained = [value.numel() for name, value in anatomy.initial.items() if name not in anatomy.layout.server_only]
    shared = sum(value.numel() for value in exchange.shared.values())
    personal = sum(value.numel() for value in exchange.personal.values())
    dtype = job.backbone.base_dtype
    return ModelSizes(anatomy.frozen_entries + sum(trained), sum(trained), shared, personal, anatomy.base_bytes, dtype)


def _past_bytes(exchange: Exchange, plans: Sequence[RoundPlan]) -> int:
    """Most bytes of earlier models that the server keeps for devices that are still at work."""
    most = max((len(set(plan.under_way.values())) for plan in plans), default=0)
    return most * (num_bytes(exchange.shared) + num_bytes(exchange.control))


def _memory_and_seats(
    experiment: Experiment, exchange: Exchange, samples: Samples, room: Room, past: int
) -> tuple[Memory, Seats, BackendChoice | None]:
    """Placement and memory, which depend on each other: an actor's need depends on its GPU share and lanes.

    past: see `_past_bytes`.
    """
    job, anatomy = exchange.rehearsal.job, exchange.rehearsal.anatomy
    on_ray, fleet = experiment.fleet.kind == "ray", experiment.fleet
    share = _seats(experiment, job, room, UNFORESEEN).placement.gpus_per_actor
    on_gpu = share > 0
    on_cpu = not on_gpu or 0 in fleet.gpu_shares
    kinds = [(gpu, gpus) for gpu, gpus, there in ((True, share, on_gpu), (False, 0.0, on_cpu)) if there]
    known = fleet.known_lanes or 1

    def of_kind(lanes: int, gpu: bool, backend: Backend) -> ActorMemory:
        return memory.actor_memory(exchange.rehearsal, samples, lanes, on_ray, gpu, backend)

    held = {gpu: _backend_choice(job, anatomy, room, gpus, of_kind(known, gpu, "auto").beside) for gpu, gpus in kinds}
    backends: dict[bool, Backend] = {
        gpu: backend_choice.backend if backend_choice else "plain" for gpu, backend_choice in held.items()
    }

    def actor_of(lanes: int) -> ActorMemory:
        """The largest actor, if they differ."""
        found = [of_kind(lanes, gpu, backend) for gpu, backend in backends.items()]
        return replace(found[0], private=max(one.private for one in found))

    others = 2 * (exchange.server_bytes + past)
    if on_ray:
        under_way = (job.cohort_size + 2) * sum(map(num_bytes, (exchange.shared, exchange.control)))
        others += memory.SERVER_BYTES + memory.RAY_BYTES + under_way
    base = anatomy.base_bytes if backends.get(False, "deepspeed") != "deepspeed" else 0
    actor = actor_of(1)
    beside = of_kind(known, True, backends[True]).beside if on_gpu else None
    need = Need(actor.private, actor.private, base * room.num_nodes + others, actor.gpu, beside)
    seats = _seats(experiment, job, room, need)
    smallest = min([each.gpus_per_actor for each in fleet.classes if each.gpus_per_actor] or [share])
    sharing = actors_on_a_gpu(seats.placement.num_actors, smallest)
    part = gpu_part(room.resources.gpu_memory, sharing, smallest)
    most = _most_lanes(seats.lanes, actor_of, part)
    if seats.lanes > 1:
        if fleet.known_lanes is None and most is not None:
            seats = replace(seats, lanes=_with_room(min(most, seats.lanes), actor_of, part or 0))
        actor, lanes = actor_of(seats.lanes), seats.lanes
        need = replace(need, pooled=actor.private, lanes=lanes if sharing and fleet.known_lanes is None else None)
        seats = replace(_seats(experiment, job, room, need), lanes=lanes)
    is_made = room.base_is_there or not job.backbone.has_base
    prepare = 0 if is_made else memory.PROCESS_BYTES + anatomy.base_bytes
    total = seats.placement.num_actors * actor.private + need.fixed
    available = room.resources.memory_bytes
    on_gpus = sharing, sharing * actor.gpu, room.resources.gpu_memory, part, most
    return Memory(need, actor, base, others, total, prepare, available, *on_gpus), seats, held[on_gpu]


def _most_lanes(lanes: int, actor_of: Callable[[int], ActorMemory], part: int | None) -> int | None:
    """About how many lanes fit, since each adds the same memory; None if lanes are 1 or the room is unknown."""
    if lanes == 1 or part is None:
        return None
    one, all_of_them = actor_of(1).gpu, actor_of(lanes).gpu
    return max(1, 1 + int((part - one) * (lanes - 1) / (all_of_them - one)))


def _with_room(lanes: int, actor_of: Callable[[int], ActorMemory], part: int) -> int:
    """The number of lanes, lowered until they fit: the trial at the start tries no more."""
    while lanes > 1 and actor_of(lanes).gpu > part:
        lanes -= max(1, lanes // 20)
    return lanes


def _seats(experiment: Experiment, job: Job, room: Room, need: Need) -> Seats:
    fleet = experiment.fleet
    if fleet.kind == "local":
        gpus = fleet.gpus if fleet.gpus is not None else 1.0
        own = gpus if room.resources.gpus else 0.0
        placement = Placement(False, 1, 0.0, own, "fleet.kind local: everything in this process")
    else:
        try:
            placement = decide(fleet, job.num_devices, room.resources, need)
        except FleetError as error:
            raise CapacityError(str(error)) from error
    share = ceil(job.cohort_size / placement.num_actors)
    lanes, hosted = _lanes(experiment, placement, share), ceil(job.num_devices / placement.num_actors)
    return Seats(placement, room.resources.cpus, lanes, hosted, share)


def _lanes(experiment: Experiment, placement: Placement, cohort_per_actor: int) -> int:
    """The upper limit of lanes; `auto` may choose fewer."""
    if placement.per_device:
        return 1
    if experiment.fleet.known_lanes is not None:
        return min(experiment.fleet.known_lanes, experiment.cohort_size)
    on_gpu = placement.gpus_per_actor > 0
    pays = on_gpu or experiment.backbone.base_dtype == "bfloat16"
    return max(1, cohort_per_actor) if pays and experiment.method.peft.side_by_side else 1
