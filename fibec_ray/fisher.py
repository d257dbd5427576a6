"""Fisher information of the trainable tensors, from one batched backward pass; used by curricula and masks.

The empirical Fisher of sample i is g_i g_i^T with g_i the gradient of its loss; only its diagonal g_i^2 is used.
For a Linear y = W a the per-sample gradient is G_i = sum_t e_it a_it^T, with a_it the input and e_it = dL/dy_it at
token t, where L is the *sum* of the per-sample losses (no layer mixes samples, so e_i. belongs to sample i alone).
Hooks catch both in one forward and backward pass over the batch: no per-sample loop. PEFT multiplies by its scaling
after lora_B, so treating lora_A and lora_B as plain Linears already contains the scaling.

Shapes: B samples, T tokens, n samples of a shard, `in`/`out` features of a Linear.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fibec_ray.errors import ModelError
from fibec_ray.tensors import Tensors
from fibec_ray.types import LocalModel, Shard


@dataclass
class Caught:
    """What a Linear saw of one batch. inputs: (B, T, in) or (B, in); output: (B, T, out) or (B, out)."""

    inputs: Tensor
    output: Tensor


@contextmanager
def catch(linears: Mapping[str, nn.Linear]) -> Iterator[dict[str, Caught]]:
    """Records inputs and outputs of the given Linears during one forward pass."""
    caught: dict[str, Caught] = {}
    handles = [module.register_forward_hook(_catcher(name, caught)) for name, module in linears.items()]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _catcher(name: str, caught: dict[str, Caught]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if name in caught:
            raise ModelError(f"{name}: called twice in one forward pass, so its gradient is not one product per sample")
        caught[name] = Caught(args[0].detach(), output)

    return hook


def per_sample_squares(inputs: Tensor, grads: Tensor, bias: bool) -> dict[str, Tensor]:
    """Squared per-sample gradients in float32: {"weight": (B, out, in)} and, if asked, {"bias": (B, out)}.

    inputs: (B, T, in) or (B, in). grads: of the summed loss for the outputs, (B, T, out) or (B, out).
    """
    inputs, grads = inputs.float(), grads.float()
    if inputs.dim() == 2:
        inputs, grads = inputs.unsqueeze(1), grads.unsqueeze(1)
    squares = {"weight": torch.bmm(grads.transpose(1, 2), inputs).square_()}
    if bias:
        squares["bias"] = grads.sum(dim=1).square_()
    return squares


def batch_squares(model: LocalModel, shard: Shard, rows: Tensor, names: Collection[str]) -> tuple[Tensors, Tensor]:
    """Squares (B, *shape) of the named tensors for the samples at `rows`, and their losses (B,).

    Evaluation mode (no dropout) is the caller's duty. Raises ModelError for a tensor that no Linear holds.
    """
    linears = {prefix: module for prefix, module in model.linears.items() if _holds(prefix, names)}
    missing = [name for name in names if name.rpartition(".")[0] not in linears]
    if missing:
        raise ModelError(
            f"Fisher information is available for Linear layers only; '{missing[0]}' is none. "
            "Leave it out of the scope, or choose a method without Fisher information"
        )
    with torch.enable_grad(), catch(linears) as caught:
        losses = model.forward(shard.batch(rows)).losses
        # Gradients of the outputs, not of the weights: the sum over samples is never formed.
        grads = torch.autograd.grad(losses.sum(), [caught[prefix].output for prefix in linears])
    squares: Tensors = {}
    for prefix, grad in zip(linears, grads, strict=True):
        values = per_sample_squares(caught[prefix].inputs, grad, bias=f"{prefix}.bias" in names)
        squares |= {f"{prefix}.{leaf}": value for leaf, value in values.items() if f"{prefix}.{leaf}" in names}
    return squares, losses.detach().float()


def _holds(prefix: str, names: Collection[str]) -> bool:
    return f"{prefix}.weight" in names or f"{prefix}.bias" in names


class FisherScan:
    """One pass of squared gradients over batches at the model's present parameters, run when first asked.

    A curriculum and a mask may read the same scan: the pass then runs once. Its results belong to samples, not to
    batches, so it may walk the samples in groups of like length, which saves padding. Memory is bounded by one group.
    """

    def __init__(self, model: LocalModel, shard: Shard, batches: Sequence[Tensor], names: Collection[str]):
        self._model = model
        self._names = tuple(name for name in model.trainable if name in names)
        self.shard = shard
        self.batches = batches
        """rows of each batch, (B,) int64 positions within the shard"""

    @property
    def has_run(self) -> bool:
        """True once somebody has asked for a result."""
        return "_result" in self.__dict__

    @property
    def traces(self) -> Tensor:
        """(n,) float32: Tr(diag F_i) = ||g_i||^2 of each sample of the shard; NaN for rows in no batch."""
        return self._result[0]

    @property
    def losses(self) -> Tensor:
        """(n,) float32 loss of each sample; NaN for rows in no batch."""
        return self._result[1]

    @property
    def diagonal(self) -> Tensors:
        """Diagonal Fisher over the scanned samples: (1/n) sum_i g_i^2, shaped like the tensors, float32."""
        return self._result[2]

    @cached_property
    def _result(self) -> tuple[Tensor, Tensor, Tensors]:
        traces = torch.full((self.shard.num_samples,), float("nan"))
        losses = traces.clone()
        sums: Tensors = {}
        rows = torch.cat(list(self.batches))
        self._model.train(False)
        for group in by_length(self.shard, rows, max(len(batch) for batch in self.batches)):
            squares, group_losses = batch_squares(self._model, self.shard, group, self._names)
            traces[group] = torch.stack([value.flatten(1).sum(1) for value in squares.values()]).sum(0).cpu()
            losses[group] = group_losses.cpu()
            for name, value in squares.items():
                total = value.sum(0).cpu()
                sums[name] = sums[name].add_(total) if name in sums else total
        return traces, losses, {name: value / len(rows) for name, value in sums.items()}


def by_length(shard: Shard, rows: Tensor, size: int) -> list[Tensor]:
    """`rows` in groups of `size`, shortest samples first (ties in the order given)."""
    return list(rows[torch.argsort(shard.lengths[rows], stable=True)].split(size))


def momentum(previous: Tensors, new: Tensors, gamma: float) -> Tensors:
    """F^t = gamma F^{t-1} + (1 - gamma) F~^t (FibecFed's momentum FIM); an empty `previous` gives `new`."""
    if not previous:
        return new
    return {name: gamma * previous[name] + (1 - gamma) * value for name, value in new.items()}
