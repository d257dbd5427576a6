"""Clipping of named tensors to a joint norm."""

from __future__ import annotations

from fibec_ray.tensors import Tensors, joint_norm


def clipped(tensors: Tensors, most: float | None) -> Tensors:
    """The tensors times min(1, most / norm). None: unchanged."""
    if most is None or (length := joint_norm(tensors)) <= most:
        return tensors
    return {name: value * (most / length) for name, value in tensors.items()}
