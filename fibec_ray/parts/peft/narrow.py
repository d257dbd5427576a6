"""Trained Linears that compute in the dtype of their input, with values in float32.

On a bfloat16 base, PEFT casts whole states to float32 before it multiplies them by small matrices. Casting the matrices
instead moves far less memory, and GPUs multiply bfloat16 matrices much faster. Gradients reach the float32 values.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def follow_input(linear: Any) -> None:
    """Make a Linear compute in the dtype of its input."""
    linear.forward = partial(_linear, linear)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))
