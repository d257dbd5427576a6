"""Exact gradients of each sample of a batch, from one forward and backward pass.

L is the *sum* of the per-sample losses and no layer mixes samples, so e_it = dL/dy_it, the gradient of a module's
output at token t of sample i, belongs to sample i alone. The gradient of one sample is then a sum over its tokens of
products of e_it with what the module saw. `sample_formulas.py` has the products for each kind of module.

Hooks record both factors in one pass over the batch, without a loop over samples. Two conditions must hold. Weights are
used only by calls of their module (not so in merged adapters, compiled or checkpointed modules). An encoder of prompts
is called with a row of indices per sample, as PEFT does for prefixes (it computes prompts only once for all).

With k rows per sample, such as two responses to a prompt, modules see k B rows, those of a sample one after the other.
The rows of a sample then count as one, with k T tokens.

Shapes: B samples, T tokens (all axes between the first and the last), `in`/`out` features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from fibec_ray.curvature.sample_formulas import (
    FORMULAS,
    WINDOWS,
    Formula,
    bias_gradient,
    by_token,
    formulas_of,
    inputs_by_token,
    kind_of,
    outputs_by_token,
    refuse,
    tensor_of,
)
from fibec_ray.errors import ModelError
from fibec_ray.tensors import Tensors


@dataclass(frozen=True)
class Part:
    """Consecutive samples of a batch, which may be padded beyond their own length."""

    rows: slice
    length: int
    """tokens in a row of these samples"""
    padded: int
    """tokens in a row of the batch"""
    total: int
    """N, samples in the batch"""
    num_rows: int = 1
    """k, rows per sample"""

    def of(self, value: Tensor) -> Tensor:
        """These samples' part of a value (N, ...), per token (k N, padded, features), or of N * windows rows."""
        each = len(value) // self.total
        own = value[self.rows.start * each : self.rows.stop * each]
        by_token = value.dim() == 3 and value.shape[1] == self.padded and each == self.num_rows
        return own[:, : self.length] if by_token else own


@contextmanager
def catch(
    holders: Mapping[str, nn.Module], names: Collection[str], num_samples: int, num_rows: int = 1
) -> Iterator[Caught]:
    """Record what the holders of the named tensors see during one forward pass over `num_samples` samples.

    num_rows: k, rows per sample.
    holders: modules by the common prefix of their tensors' names: "x" holds "x.weight" and "x.bias"; an (IA)^3 layer
    "x" holds "x.ia3_l". Raises ModelError for a tensor without a known per-sample gradient.
    """
    found = formulas_of(holders, names) if names else {}
    caught = Caught({prefix: Seen(prefix, holders[prefix], found[prefix], num_samples, num_rows) for prefix in found})
    with ExitStack() as hooks:
        for seen in caught.modules.values():
            for handle in seen.watch():
                hooks.callback(handle.remove)
        yield caught


@dataclass(frozen=True)
class Caught:
    """What the holders saw of one batch; gives each sample's gradients once the outputs' gradients are known.

    After the forward pass call `torch.autograd.grad(losses.sum(), caught.tensors, allow_unused=True)`, any number of
    times while the graph is kept.
    """

    modules: Mapping[str, Seen]
    """by prefix, in the order of the holders"""

    @property
    def inputs(self) -> Tensors:
        """a by prefix, (k B, T, in), (B, in) or indices (k B, T); without modules not called, or with only a bias."""
        return {prefix: seen.inputs for prefix, seen in self.modules.items() if seen.inputs is not None}

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors whose gradients are needed, in the order of the holders; none for a module that was not
        called.
        """
        for seen in self.modules.values():
            seen.refuse_changes()
        return [seen.output for seen in self.modules.values() if seen.output is not None]

    def squares(self, grads: Sequence[Tensor | None], scale: float = 1.0) -> Tensors:
        """The squared entries of `gradients`."""
        return {name: value.square_() for name, value in self.gradients(grads, scale).items()}

    @torch.no_grad()
    def sums_of_squares(self, grads: Sequence[Tensor | None], num_parts: int) -> Tensors:
        """{name: (D, *shape)}: the squared entries of `gradients`, summed over the samples of each of D equal parts.

        One module at a time, so that the gradients of all samples of all modules are never in memory together.
        """
        given, sums = self.by_prefix(grads), Tensors()
        for prefix, seen in self.modules.items():
            for name, value in seen.gradients(given[prefix], 1.0).items():
                sums[name] = value.square_().unflatten(0, (num_parts, -1)).sum(1)
        return sums

    @torch.no_grad()
    def gradients(self, grads: Sequence[Tensor | None], scale: float = 1.0) -> Tensors:
        """Gradients of each sample, {name: (B, *shape)} float32; zeros for a tensor that the loss does not depend on.

        grads: of the summed loss for `tensors` (None: the loss does not depend on it). scale: factor on them, B if the
        loss was a mean over samples.
        """
        given = self.by_prefix(grads)
        parts = (seen.gradients(given[prefix], scale) for prefix, seen in self.modules.items())
        return {name: value for part in parts for name, value in part.items()}

    def part(self, part: Part) -> Caught:
        """The same for some of the samples. `tensors` stay the whole batch's: cut their gradients in the same way."""
        return Caught({prefix: seen.part(part) for prefix, seen in self.modules.items()})

    def by_prefix(self, grads: Sequence[Tensor | None]) -> dict[str, Tensor | None]:
        """The gradients of `tensors` by holder; None also for a holder that was not called."""
        called = [prefix for prefix, seen in self.modules.items() if seen.output is not None]
        return dict.fromkeys(self.modules) | dict(zip(called, grads, strict=True))


class Seen:
    """What one holder saw of the batch. formulas: by name, for the requested tensors of this holder."""

    def __init__(
        self, prefix: str, module: nn.Module, formulas: Mapping[str, Formula], num_samples: int, num_rows: int = 1
    ):
        self.inputs: Tensor | None = None
        """a, or W a + b of an (IA)^3 on outputs; detached; None if not called or not needed"""
        self.output: Tensor | None = None
        """y, or l * a of a feed-forward (IA)^3; in the graph; None if not called"""
        self._prefix, self._module, self._formulas = prefix, module, formulas
        self._num_samples, self._num_rows = num_samples, num_rows
        self._versions: list[tuple[Tensor, int]] = []

    def part(self, part: Part) -> Seen:
        """The same for some of the samples."""
        seen = Seen(self._prefix, self._module, self._formulas, part.rows.stop - part.rows.start, self._num_rows)
        seen.inputs = None if self.inputs is None else part.of(self.inputs)
        seen.output, seen._versions = self.output, self._versions
        return seen

    def watch(self) -> list[RemovableHandle]:
        """Install the hooks; return their handles."""
        module: Any = self._module
        if kind_of(module) == "(IA)^3" and module.is_feedforward:
            into = module.register_forward_pre_hook(lambda _, args: self._see_inputs(args[0]))
            return [into, module.base_layer.register_forward_pre_hook(lambda _, args: self._see_output(args[0]))]
        out = module.register_forward_hook(lambda _, args, y: self._see_output(y))
        if kind_of(module) == "(IA)^3":
            return [out, module.base_layer.register_forward_hook(lambda _, args, y: self._see_inputs(y))]
        if set(self._formulas.values()) == {bias_gradient}:
            return [out]  # biases need no inputs
        return [out, module.register_forward_pre_hook(lambda _, args: self._see_inputs(args[0]))]

    def _see_inputs(self, value: Tensor) -> None:
        self._see(value, self.inputs)
        self.inputs = value.detach()

    def _see_output(self, value: Any) -> None:
        if kind_of(self._module) == "other" and not _ends_in_adding(value, tensor_of(self._module, "bias")):
            refuse(next(iter(self._formulas)), f"a {type(self._module).__name__} does not add it to its output")
        self._see(value, self.output)
        if not value.requires_grad:
            raise ModelError(
                f"{self._prefix}: its output has no gradient graph; is it under torch.no_grad or gradient "
                "checkpointing?"
            )
        self.output = value

    def _see(self, value: Tensor, before: Tensor | None) -> None:
        if before is not None:
            raise ModelError(
                f"{self._prefix}: called twice in one forward pass, so per-sample gradients are not known; choose a "
                "method without Fisher information"
            )
        if value.dim() < (4 if kind_of(self._module) == "Conv2d" else 2) or not self._is_by_sample(len(value)):
            raise ModelError(
                f"{self._prefix}: axis 0 of {tuple(value.shape)} is not the {self._num_samples} samples, so "
                "per-sample gradients are not known; leave it out of method.peft.target_modules, or choose a method "
                "without Fisher information"
            )
        self._versions.append((value.detach(), value._version))  # a detached tensor shares the counter

    def _is_by_sample(self, size: int) -> bool:
        """True if axis 0 of this size has the samples, or the rows or windows of each sample."""
        if hasattr(self._module, WINDOWS):
            return size % self._num_samples == 0
        return size in (self._num_samples, self._num_rows * self._num_samples)

    def refuse_changes(self) -> None:
        """Raise ModelError if a recorded tensor was changed in place."""
        if any(value._version != version for value, version in self._versions):
            raise ModelError(
                f"{self._prefix}: its input or output was changed in place, so per-sample gradients are not known"
            )

    @property
    def is_linear(self) -> bool:
        """True for a Linear whose weight is requested: the gradient of a sample is sum_t e_t a_t^T."""
        return kind_of(self._module) == "Linear" and FORMULAS["Linear"]["weight"] in self._formulas.values()

    def tokens(self, grad: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """For such a Linear, a (B, T, in) and e (B, T, out), float32; None if the loss does not depend on it.

        If its bias is requested too, a ends with a 1, and the gradient's last column is the bias's.
        """
        if grad is None or self.inputs is None:
            return None
        a = by_token(self.inputs, self._num_samples)
        return F.pad(a, (0, 1), value=1.0) if len(self._formulas) > 1 else a, by_token(grad, self._num_samples)

    def gradients(self, grad: Tensor | None, scale: float) -> Tensors:
        """Gradients of each sample. grad: of `output`, in its shape."""
        if grad is None:
            tensors = {name: tensor_of(self._module, name) for name in self._formulas}
            return {name: torch.zeros(self._num_samples, *t.shape, device=t.device) for name, t in tensors.items()}
        e = outputs_by_token(self._module, grad, self._num_samples) * scale
        # Without inputs no formula uses them.
        a = e if self.inputs is None else inputs_by_token(self._module, self.inputs, self._num_samples)
        return {name: formula(self._module, a, e) for name, formula in self._formulas.items()}


def _ends_in_adding(output: Any, bias: Tensor) -> bool:
    """True if the graph's last operation of `output` is `something + bias`, on the last axis."""
    node: Any = getattr(output, "grad_fn", None)
    if type(node).__name__ != "AddBackward0" or bias.shape != output.shape[-1:]:
        return False
    return node._saved_alpha == 1 and sum(getattr(p, "variable", None) is bias for p, _ in node.next_functions) == 1
