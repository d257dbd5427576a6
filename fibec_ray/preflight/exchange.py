"""Bytes that are sent and bytes that stay on devices, from the method's own parts.

A server is set up on made-up tensors. Updates go through the same cuts, turns and extras as in a run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from math import ceil

import torch

from fibec_ray.learning.fitting import full_rank_of, on_wire
from fibec_ray.preflight.rehearsal import Rehearsal
from fibec_ray.tensors import Tensors, drop, num_bytes, select, with_prefix
from fibec_ray.types import SETUP_ROUND, DeviceUpdate
from fibec_ray.word_counts import exchanged_bytes


@dataclass(frozen=True)
class Message:
    """Bytes between a device and the server in one round, or in the setup phase."""

    down: int
    up_delta: int
    up_extras: int

    @property
    def up(self) -> int:
        """All bytes that the device sends."""
        return self.up_delta + self.up_extras


class Exchange:
    """The messages of a run, and what its devices and its server store."""

    def __init__(self, rehearsal: Rehearsal):
        self.rehearsal, self._job, self._anatomy = rehearsal, rehearsal.job, rehearsal.anatomy
        self.shared, self.personal, self.control = rehearsal.shared, rehearsal.personal, rehearsal.control
        self.checkpoint_bytes = self._server_file_bytes()
        self.server_bytes = self.checkpoint_bytes + num_bytes(self._anatomy.initial)
        self._messages: dict[tuple[int | None, int, int], Message] = {}
        self._wires: dict[tuple[int | None, frozenset[str]], Tensors] = {}
        self._states: dict[tuple[int, bool], int] = {}

    def _server_file_bytes(self) -> int:
        """After all devices have taken part."""
        known = self.rehearsal.server.learnt | with_prefix("control", self.rehearsal.found.control)
        known["initial/digest"] = torch.empty(16, dtype=torch.uint8)
        states = [known | with_prefix("aggregator", state) for state in self.rehearsal.aggregator_states()]
        few, more = (file_bytes(state, {"order": json.dumps(list(state))}) for state in states)
        return few + (more - few) * (self._job.num_devices - 2) // 2

    def setup(self, device: int, num_words: Callable[[int], int]) -> Message:
        """The setup phase of one device: P^0 down, layer scores and word counts up.

        num_words: returns the number of different tokens in a device's training texts.
        """
        job = self._job
        if not job.method.needs_setup:
            return Message(0, 0, 0)
        down = self._on_wire(self._anatomy.initial, full_rank_of(job, device))
        scores = job.method.sharing.example_scores(self._anatomy.layout.num_layers)
        words = exchanged_bytes(num_words(device)) if job.method.curriculum.pools_words else (0, 0)
        return Message(num_bytes(down) + words[0], 0, scores.num_bytes + words[1])

    def message(self, device: int, round_: int, num_samples: int) -> Message:
        """One device-round. num_samples: the device's."""
        if self._job.pooled_cohort is not None:
            return Message(0, 0, 0)
        key = full_rank_of(self._job, device), round_, num_samples
        if key not in self._messages:
            self._messages[key] = self._message_of(*key)
        return self._messages[key]

    def _message_of(self, rank: int | None, round_: int, num_samples: int) -> Message:
        job, own = self._job, drop(self.shared, self._anatomy.layout.server_only)
        peft, control = job.method.peft, self.rehearsal.found.control if round_ else self.control
        asked = replace(self.rehearsal.server.asked(round_), control=control)
        moved = set(asked.shared).union(*(peft.moving(own, t, job.rounds) for t in range(min(round_, 2))))
        if round_:  # the server has changed these, so they are sent too
            moved |= self._anatomy.layout.server_only | self.rehearsal.stepped
        delta = self._on_wire(asked.shared, rank)
        update = DeviceUpdate(0, num_samples, 1, delta, rank=rank, learning_rate=asked.learning_rate)
        down = num_bytes(control) + self.rehearsal.privacy_bytes_down
        if job.method.uplink.encodes_down:
            moved -= own.keys()
            down += self.rehearsal.encoded_bytes_down(own)
        down += num_bytes(self._on_wire(moved, rank))
        return Message(down, self.rehearsal.delta_bytes(delta), self.rehearsal.extras_bytes(asked, update))

    def _on_wire(self, names: Collection[str], rank: int | None) -> Tensors:
        """Some tensors, in the form that is sent."""
        key = rank, frozenset(names)
        if key not in self._wires:
            self._wires[key] = on_wire(self._job, select(self._anatomy.initial, key[1]), rank)
        return self._wires[key]

    def state_bytes(self, num_samples: int, opened: bool) -> int:
        """Size of a device's state file after the setup phase (`opened`) or a round."""
        key = num_samples, opened
        if key not in self._states:
            tensors = self._curriculum_memory(num_samples, opened)
            if opened:
                tensors |= self.rehearsal.found.setup_memory
            else:
                tensors |= self.rehearsal.participation(1).memory | with_prefix("personal", self.personal)
            self._states[key] = file_bytes(tensors, {"digest": "0" * 32}) if tensors else 0
        return self._states[key]

    def _curriculum_memory(self, num_samples: int, opened: bool) -> Tensors:
        curriculum, last = self._job.method.curriculum, self._job.rounds - 1
        if not (curriculum.needs_setup or (not opened and curriculum.due({}, last))):
            return {}
        batches = torch.arange(num_samples).split(self._job.local.batch_size)
        memory, _ = self.rehearsal.order(torch.ones(num_samples).long(), batches, SETUP_ROUND if opened else last)
        return with_prefix("memory/curriculum", memory)


DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint8: "U8"}
"""Type names of safetensors; names of other types have three or four letters too."""


def file_bytes(tensors: Tensors, metadata: Mapping[str, str]) -> int:
    """Size of a safetensors file with these tensors: a JSON header padded to 8 bytes, and the values."""
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        size = value.numel() * value.element_size()
        word = DTYPES.get(value.dtype, "BOOL")
        header[name] = {"dtype": word, "shape": list(value.shape), "data_offsets": [at, at + size]}
        at += size
    return 8 + 8 * ceil(len(json.dumps(header, separators=(",", ":"))) / 8) + at
