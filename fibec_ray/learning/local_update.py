"""A device's local training: the steps of one round; called by device.py."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from fibec_ray.learning.job import LocalTraining
from fibec_ray.parts.objective.base import Objective
from fibec_ray.per_sample import Caught, catch
from fibec_ray.tensors import Tensors, clone
from fibec_ray.types import LocalModel, Shard


@dataclass(frozen=True)
class Trained:
    num_steps: int
    num_samples: int
    """visited, repeats over epochs included"""
    mean_loss: float
    """of the task alone, over steps, before each step"""
    squares: Tensors
    """mean squared per-sample gradients of the watched tensors, each at the parameters of its step"""


def local_update(
    model: LocalModel,
    shard: Shard,
    batches: Iterable[Tensor],
    settings: LocalTraining,
    learning_rate: float,
    objective: Objective,
    keep: Mapping[str, Tensor],
    memory: Tensors,
    hint: Tensors,
    watch: Collection[str] = (),
) -> Trained:
    """Takes one optimiser step for each batch, in place in the model.

    keep: bool tensors, True where an entry may move. Entries that may not are bit-identical afterwards: weight decay
    and momentum would move them even without a gradient, so they are put back after every step.
    watch: tensors whose squared gradients are wanted; they come from the steps' own backward passes.
    """
    params = dict(model.trainable)
    anchor = clone(params)
    frozen = {name: ~mask.to(params[name].device) for name, mask in keep.items()}
    optimizer = _optimizer(settings, params, learning_rate)
    model.train(True)
    losses: list[Tensor] = []
    num_samples = 0
    squares: Tensors = {}
    for rows in islice(batches, settings.max_steps):
        optimizer.zero_grad(set_to_none=True)
        with catch(model.holders, watch, len(rows)) as caught:
            loss = model.forward(shard.batch(rows)).losses.mean()
        for tensor in caught.tensors:
            tensor.retain_grad()
        penalty = objective.penalty(params, anchor)
        (loss if penalty is None else loss + penalty).backward()
        _accumulate(squares, caught, len(rows))
        objective.correct(params, memory, hint)
        _zero_masked(params, frozen)
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(params.values(), settings.clip)
        optimizer.step()
        _restore_masked(params, frozen, anchor)
        losses.append(loss.detach())
        num_samples += len(rows)
    model.train(False)
    mean_squares = {name: value.cpu() / num_samples for name, value in squares.items()}
    return Trained(len(losses), num_samples, float(torch.stack(losses).double().mean()), mean_squares)


def _accumulate(squares: Tensors, caught: Caught, num_samples: int) -> None:
    """Adds a batch's squared per-sample gradients; the loss was their mean, so gradients are scaled back to a sum."""
    if not caught.tensors:
        return
    batch = caught.squares([tensor.grad for tensor in caught.tensors], scale=num_samples)
    for name, value in batch.items():
        total = value.sum(0)
        squares[name] = squares[name].add_(total) if name in squares else total


def _optimizer(settings: LocalTraining, params: Mapping[str, nn.Parameter], rate: float) -> torch.optim.Optimizer:
    values = list(params.values())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            values, lr=rate, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.AdamW(values, lr=rate, weight_decay=settings.weight_decay, fused=True)


def _zero_masked(params: Mapping[str, nn.Parameter], frozen: Tensors) -> None:
    """Before clipping, so that entries that cannot move do not count in the gradient's norm."""
    for name, mask in frozen.items():
        grad = params[name].grad
        if grad is not None:
            grad.masked_fill_(mask, 0.0)


@torch.no_grad()
def _restore_masked(params: Mapping[str, nn.Parameter], frozen: Tensors, anchor: Tensors) -> None:
    for name, mask in frozen.items():
        params[name].copy_(torch.where(mask, anchor[name], params[name]))
