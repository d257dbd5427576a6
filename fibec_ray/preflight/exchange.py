"""Bytes that go over the wire and stay on a device, from the method's own parts.

The parts' code is asked wherever it needs no numbers: a server is opened on tensors of the meta device, and devices'
updates are cut, taken in turns and accompanied as they would be. What parts compute by passes of the model is known by
its size: `evidence_bytes` for aggregators, `memory_bytes` for what devices keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from fibec_ray.curvature.ggn import TOKEN_DRAWS
from fibec_ray.learning.fitting import on_wire, room_of
from fibec_ray.learning.job import Job
from fibec_ray.learning.server import Server
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.fedfisher import FedFisher
from fibec_ray.parts.aggregator.fipa import Fipa
from fibec_ray.parts.aggregator.fisher_merging import FisherMerging
from fibec_ray.parts.aggregator.server_optimisers import ServerOptimiser
from fibec_ray.parts.curriculum.random_order import RandomOrder
from fibec_ray.parts.curriculum.scored import Scored
from fibec_ray.parts.mask.by_neuron import ByNeuron
from fibec_ray.parts.mask.fisher_neurons import FisherNeurons
from fibec_ray.parts.mask.frozen_matrix import FrozenMatrix
from fibec_ray.parts.objective.adalora import AdaLoraImportance
from fibec_ray.parts.objective.rank_pruning import RankPruning
from fibec_ray.parts.sharing.gal import GlobalLayers
from fibec_ray.parts.solver.own_model import OwnModel
from fibec_ray.preflight.anatomy import Anatomy
from fibec_ray.tensors import Tensors, drop, num_bytes, select
from fibec_ray.types import LayerReport, LayerScores

HEADER_BYTES = 80
"""Of a tensor in a safetensors file, beside its name: type, shape and place."""
FILE_BYTES = 80
"""Of such a file, beside its tensors: its digest."""
KEEP_RATIO = 0.5
"""Share of the layers that a spectrum is taken to ask for, where it decides on what is shared."""


@dataclass(frozen=True)
class Message:
    """Bytes between a device and the server in one round, or in the initialisation phase."""

    down: int
    up_delta: int
    up_evidence: int

    @property
    def up(self) -> int:
        return self.up_delta + self.up_evidence


class Exchange:
    """Messages of a run, and what its devices and its server keep. initial: P^0 on the meta device."""

    def __init__(self, job: Job, anatomy: Anatomy):
        self._job, self._anatomy = job, anatomy
        server = Server(job, anatomy.initial, anatomy.layout)
        scores = LayerScores(torch.arange(anatomy.layout.num_layers).float(), KEEP_RATIO)
        server.open([LayerReport(0, 1, scores)])
        broadcast = server.broadcast(0)
        self.shared: Tensors = dict(broadcast.shared)
        self.personal = drop(anatomy.initial, self.shared)
        self.hint: Tensors = dict(broadcast.hint)
        self.checkpoint_bytes = file_bytes(server.learnt)
        self.server_bytes = self.checkpoint_bytes + num_bytes(anatomy.initial)
        self._found: dict[tuple[int | None, int, int], Message] = {}

    def opening(self, device: int) -> Message:
        """The initialisation phase: all of P^0 down, and the scores of layers up."""
        job, sharing = self._job, self._job.method.sharing
        if not job.method.opens:
            return Message(0, 0, 0)
        scores = 0
        if isinstance(sharing, GlobalLayers):
            scores = 4 * (self._anatomy.layout.num_layers + (sharing.count_by != "fraction"))
        down = on_wire(job, self._anatomy.initial, self._rank(device))
        return Message(num_bytes(down), 0, scores)

    def message(self, device: int, round_: int, num_samples: int) -> Message:
        """A device-round's. num_samples: the device's."""
        if self._job.stands_for is not None:
            return Message(0, 0, 0)
        key = self._rank(device), min(round_, 2 + round_ % 2 + self._warmup()), min(num_samples, self._most_columns())
        if key not in self._found:
            self._found[key] = self._message_of(*key)
        return self._found[key]

    def _message_of(self, rank: int | None, round_: int, num_samples: int) -> Message:
        job, own = self._job, drop(self.shared, self._anatomy.layout.carried)
        peft = job.method.peft
        moving = peft.moving(own, round_, job.rounds)
        moved = frozenset[str]().union(*(peft.moving(own, t, job.rounds) for t in range(min(round_, 2))), moving)
        delta = on_wire(job, select(self.shared, moving), rank)
        of_objective = self._objective_evidence(delta)
        columns = num_samples * (TOKEN_DRAWS if job.answers_in_text else max(1, job.num_classes - 1))
        evidence = of_objective + evidence_bytes(job.method.aggregator, delta, self._anatomy, round_, columns)
        down = num_bytes(on_wire(job, select(self.shared, moved), rank)) + num_bytes(self.hint)
        if round_:  # what the server makes of the first updates travels too
            down += num_bytes(select(self.shared, self._anatomy.layout.carried))
            down += of_objective if isinstance(job.method.objective, AdaLoraImportance) else 0
        return Message(down, num_bytes(delta), evidence)

    def _objective_evidence(self, delta: Tensors) -> int:
        objective = self._job.method.objective
        if isinstance(objective, AdaLoraImportance):
            return num_bytes({name: value for name, value in delta.items() if name.endswith(".lora_E")})
        if isinstance(objective, RankPruning):
            return 0
        memory = objective.remember({}, self.shared)
        return num_bytes(objective.finish(memory, self.hint, delta, 1, 1.0)[1])

    def _warmup(self) -> int:
        aggregator = _innermost(self._job.method.aggregator)
        return aggregator.warmup_rounds if isinstance(aggregator, Fipa) else 1

    def _most_columns(self) -> int:
        """More samples than that make no difference to what is sent."""
        aggregator = _innermost(self._job.method.aggregator)
        return aggregator.rank if isinstance(aggregator, Fipa) else 0

    def _rank(self, device: int) -> int | None:
        return room_of(self._job, device)

    def state_bytes(self, num_samples: int, opened: bool) -> int:
        """Of the file that a device with so many samples leaves behind, after the initialisation phase or a round."""
        tensors = memory_of(self._job, self._anatomy, self.shared, self.personal, num_samples, opened)
        if not opened:
            tensors |= {f"personal/{name}": value for name, value in self.personal.items()}
        return file_bytes(tensors) if tensors else 0


def file_bytes(tensors: Tensors) -> int:
    """Of a safetensors file with them."""
    return FILE_BYTES + num_bytes(tensors) + sum(HEADER_BYTES + len(name) for name in tensors)


def _innermost(aggregator: Aggregator) -> Aggregator:
    return _innermost(aggregator.of) if isinstance(aggregator, ServerOptimiser) else aggregator


def evidence_bytes(aggregator: Aggregator, delta: Tensors, anatomy: Anatomy, round_: int, columns: int) -> int:
    """What devices send beside their deltas for the aggregator. columns: of the factor of their curvature."""
    aggregator = _innermost(aggregator)
    if isinstance(aggregator, FisherMerging):
        return num_bytes(delta)
    if isinstance(aggregator, FedFisher):
        return _factor_bytes(delta)
    if isinstance(aggregator, Fipa) and round_ >= aggregator.warmup_rounds:
        blocks = aggregator._blocks(anatomy.model, delta)
        entries = [sum(delta[name].numel() for name in names) for names in blocks.values()]
        return sum(4 * min(aggregator.rank, size, columns) * (size + 1) for size in entries)
    return 0


def _factor_bytes(delta: Tensors) -> int:
    """Upper triangles of both Kronecker factors of each matrix, and as much as the tensor for what is no matrix."""
    total = 0
    for name, value in delta.items():
        if name.endswith(".weight") and value.dim() == 2:
            out, inside = value.shape[0], value.shape[1] + (f"{name.removesuffix('.weight')}.bias" in delta)
            total += 4 * (out * (out + 1) + inside * (inside + 1)) // 2
        elif not _is_bias_of_matrix(name, delta):
            total += num_bytes({name: value})
    return total


def _is_bias_of_matrix(name: str, delta: Mapping[str, Tensor]) -> bool:
    weight = delta.get(f"{name.removesuffix('.bias')}.weight")
    return name.endswith(".bias") and weight is not None and weight.dim() == 2


def memory_of(
    job: Job, anatomy: Anatomy, shared: Tensors, personal: Tensors, num_samples: int, opened: bool
) -> Tensors:
    """The memories of a device's parts as they are stored, on the meta device. opened: no round has been trained."""
    method, num_batches = job.method, ceil(num_samples / job.local.batch_size)
    found: Tensors = {}
    curriculum, mask, objective = method.curriculum, method.mask, method.objective
    if isinstance(curriculum, Scored | RandomOrder) and (curriculum.opens or not opened):
        units = num_batches if curriculum.unit == "batch" else num_samples
        found["order"] = torch.empty(units, dtype=torch.int64, device="meta")
        if isinstance(curriculum, Scored):
            sizes = {"sample_difficulty": num_samples, "batch_difficulty": num_batches, "scored_round": 2}
            found |= {name: torch.empty(size, device="meta") for name, size in sizes.items()}
    if isinstance(mask, FisherNeurons) and (mask.opens or not opened):
        adapter = {name: value for name, value in anatomy.initial.items() if anatomy.model.is_adapter(name)}
        found |= {f"fisher/{name}": value for name, value in (adapter if opened else personal).items()}
    if isinstance(mask, ByNeuron | FrozenMatrix) and not opened:
        found |= {f"kept/{name}": torch.empty_like(value, dtype=torch.bool) for name, value in personal.items()}
    if opened:
        return found
    if isinstance(method.solver, OwnModel):
        found |= {f"own/{name}": value for name, value in anatomy.initial.items()}
    if isinstance(objective, AdaLoraImportance):
        lora = {name: value for name, value in shared.items() if ".lora_" in name}
        found |= {f"{word}/{name}": value for word in ("mean", "deviation") for name, value in lora.items()}
    elif isinstance(objective, RankPruning):
        found["rank"] = torch.empty(1, dtype=torch.int64, device="meta")
    else:
        remembered = objective.remember({}, shared)
        found |= objective.finish(remembered, objective.absorb(shared, {}, (), 1), shared, 1, 1.0)[0]
    return found
