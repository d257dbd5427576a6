"""Messages between actors, with numpy arrays instead of tensors: Ray moves arrays without copies."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_wire(value: Any) -> Any:
    """The same structure (dataclasses, dicts, lists, tuples) with each tensor as a numpy array."""
    return _map(value, Tensor, lambda tensor: tensor.detach().cpu().contiguous().numpy())


def from_wire(value: Any) -> Any:
    """The inverse of `to_wire`. Tensors may share read-only memory of the object store; they are never written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return _map(value, np.ndarray, torch.from_numpy)


def _map(value: Any, leaf: type, change: Any) -> Any:
    if isinstance(value, leaf):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(entry, leaf, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(entry, leaf, change) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _map(getattr(value, f.name), leaf, change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value
