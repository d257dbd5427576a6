"""Base classes of codecs that flatten a delta into one vector, with and without error feedback.

Shapes: n entries of the vector, in the order of the delta's tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.parts.part import Need
from fibec_ray.parts.uplink.base import Uplink
from fibec_ray.tensors import Tensors, subtract
from fibec_ray.types import Extra


class Codec(Uplink):
    """Base of codecs that encode a delta as one vector."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("shared",)

    @property
    def lacks(self) -> tuple[Need, ...]:
        return ("exact",)

    @property
    def compensates(self) -> bool:
        """True if a device adds to its next delta what its last payload left out."""
        return False

    @abstractmethod
    def pack(self, vector: Tensor, sizes: Sequence[int], rng: torch.Generator) -> Tensors:
        """The payload of a vector, (n,) float32. sizes: entries of each tensor in it."""

    @abstractmethod
    def unpack(self, payload: Tensors, sizes: Sequence[int]) -> Tensor:
        """The vector of a payload, (n,) float32."""

    @abstractmethod
    def layout(self, sizes: Sequence[int]) -> Mapping[str, Extra]:
        """The tensors of a payload."""

    def encode(self, delta: Tensors, memory: Tensors, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        if not self.compensates:
            return self.pack(vector_of(delta), sizes_of(delta), rng), {}
        owed = {n: v + _cut(memory[n], v.shape) if n in memory else v for n, v in delta.items()}
        payload = self.pack(vector_of(owed), sizes_of(owed), rng)
        return payload, memory | subtract(owed, self.decode(payload, owed))

    def expected_payload(self, like: Tensors) -> Mapping[str, Extra]:
        return self.layout(sizes_of(like))

    def decode(self, payload: Tensors, like: Tensors) -> Tensors:
        return tensors_of(self.unpack(payload, sizes_of(like)), like)


class Compensated(Codec):
    """Base of codecs with error feedback: a device adds to its next delta what its last payload left out.

    The residual is kept with the device's state. It advances only when the server accepts the update. A tensor that is
    not sent in a round, as with `take_turns`, keeps its residual. A device whose rank falls drops the residual of the
    ranks that it loses.
    """

    error_feedback: bool = Field(True, description="add what was left out to the device's next update")

    @property
    def keeps(self) -> str:
        return "what its last update left out (device)" if self.error_feedback else ""

    @property
    def compensates(self) -> bool:
        return self.error_feedback


def vector_of(tensors: Tensors) -> Tensor:
    """All entries one after another, (n,) float32."""
    return torch.cat([torch.zeros(0), *(value.detach().flatten().float() for value in tensors.values())])


def sizes_of(like: Tensors) -> list[int]:
    """Number of entries of each tensor."""
    return [value.numel() for value in like.values()]


def tensors_of(vector: Tensor, like: Tensors) -> Tensors:
    """The inverse of `vector_of`, with the names, shapes and types of `like`."""
    parts = vector.split(sizes_of(like))
    return {name: part.reshape(v.shape).to(v.dtype) for (name, v), part in zip(like.items(), parts, strict=True)}


def in_blocks(vector: Tensor, size: int) -> Tensor:
    """(ceil(n / size), size): the vector with zeros at its end, cut into blocks."""
    blocks = -(-len(vector) // size)
    return torch.cat([vector, vector.new_zeros(blocks * size - len(vector))]).reshape(blocks, size)


def _cut(value: Tensor, shape: Sequence[int]) -> Tensor:
    """The first entries along each axis."""
    return value[tuple(slice(size) for size in shape)]
