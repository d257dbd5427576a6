"""The base class of all uplinks. The class itself sends updates without encoding them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors
from fibec_ray.types import Extra


class Uplink(Part):
    """How a device's delta is encoded on its way to the server. Extras of other parts are not encoded.

    Device half: `encode`, `decode_down`. Server half: `fault`, `decode`, `encode_down`. The encoded form is a
    *payload*, a dict of tensors, and the round log counts its bytes. By default nothing is encoded.
    """

    costs = {"encode": ("decode", "expected_payload"), "encode_down": ("decode_down", "expected_down")}

    kind: str = "none"

    @property
    def encodes(self) -> bool:
        """True if deltas are encoded."""
        return type(self).encode is not Uplink.encode

    @property
    def encodes_down(self) -> bool:
        """True if what the server sends is encoded too."""
        return type(self).encode_down is not Uplink.encode_down

    def encode(self, delta: Tensors, memory: Tensors, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        """The payload of a delta, and the device's new memory. The first memory is empty."""
        return delta, memory

    def expected_payload(self, like: Tensors) -> Mapping[str, Extra]:
        """The tensors of a payload, by name. An update with other ones is quarantined. like: tensors of the delta's
        names, shapes and types, in its order.
        """
        return {}

    def fault(self, payload: Tensors, like: Tensors) -> str | None:
        """Why a payload with well-formed tensors cannot be decoded; None if it can."""
        return None

    def decode(self, payload: Tensors, like: Tensors) -> Tensors:
        """The delta that the server sees. like: as in `expected_payload`."""
        return payload

    def encode_down(self, shared: Tensors) -> Tensors:
        """The payload of the server's tensors, for all devices of a round. shared: those that devices train."""
        return shared

    def expected_down(self, like: Tensors) -> Mapping[str, Extra]:
        """The tensors of that payload, by name. like: as in `expected_payload`, for the server's tensors."""
        return {}

    def decode_down(self, payload: Tensors, like: Tensors) -> Tensors:
        """The server's tensors as devices receive them. The global model consists of these."""
        return payload
