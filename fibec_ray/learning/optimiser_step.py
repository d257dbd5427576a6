"""The second half of a training step: masks, gradient clipping, the optimiser and the pull of a solver.

Works for one device, and for several at once with a leading lane axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fibec_ray.learning.job import LocalTraining
from fibec_ray.parts.solver.base import Pull
from fibec_ray.tensors import clone, select


class OptimiserStep:
    """Changes parameters by their gradients.

    params: the tensors that move: one device's, or (D, ...) those of D devices if `stacked`. keep: bool, True where an
    entry may move, in the shapes of params. Other entries stay bit-identical: they are restored after every step, since
    weight decay and momentum would move them even without a gradient. pull: its centre has the shapes of params.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        settings: LocalTraining,
        rate: float,
        keep: Mapping[str, Tensor],
        pull: Pull | None,
        stacked: bool = False,
    ):
        self.params = dict(params)
        self.anchor = clone(self.params)
        """the parameters when training began"""
        self._settings, self._rate, self._stacked = settings, rate, stacked
        self._frozen = {n: ~mask.to(self.params[n].device) for n, mask in keep.items() if n in self.params}
        centre = select(pull.centre, self.params) if pull else {}
        self.centre = {name: value.to(self.params[name], copy=True) for name, value in centre.items()}
        self._share = 1 - 1 / (1 + rate * pull.strength) if pull else 0.0
        self._follow = pull.follow if pull else 0.0
        self.optimizer = _optimizer(settings, list(self.params.values()), rate)

    @torch.no_grad()
    def step(self) -> None:
        """Take one step with the gradients in `.grad`, which it may change."""
        for name, mask in self._frozen.items():
            if (grad := self.params[name].grad) is not None:  # entries that cannot move do not count in the norm
                grad.masked_fill_(mask, 0.0)
        if self._settings.clip is not None:
            self._clip(self._settings.clip)
        self.optimizer.step()
        if self._share:  # the pull's step, solved exactly
            for name, value in self.centre.items():
                self.params[name].lerp_(value, self._share)
        for name, mask in self._frozen.items():
            self.params[name].copy_(torch.where(mask, self.anchor[name], self.params[name]))

    @torch.no_grad()
    def follow(self) -> None:
        """After the steps on a batch: move the centre of the pull."""
        for name, value in self.centre.items():
            value.lerp_(self.params[name], self._follow)

    def narrow(self, count: int) -> None:
        """Go on with the first `count` lanes only. The parameters become new objects on the same memory."""
        states = [self.optimizer.state.get(param, {}) for param in self.params.values()]
        self.params = {name: nn.Parameter(param.detach()[:count]) for name, param in self.params.items()}
        self.anchor, self._frozen, self.centre = (
            {name: value[:count] for name, value in tensors.items()}
            for tensors in (self.anchor, self._frozen, self.centre)
        )
        self.optimizer = _optimizer(self._settings, list(self.params.values()), self._rate)
        for param, state in zip(self.params.values(), states, strict=True):
            self.optimizer.state[param] = {
                key: value[:count] if isinstance(value, Tensor) and value.dim() else value
                for key, value in state.items()
            }

    def _clip(self, most: float) -> None:
        if not self._stacked:
            nn.utils.clip_grad_norm_(self.params.values(), most)
            return
        clip_lanes([param.grad for param in self.params.values() if param.grad is not None], most)


def add_grad(param: nn.Parameter, grad: Tensor | None, at: Tensor | None) -> None:
    """Add to `.grad`. at: the gradient's lanes; None: all."""
    if grad is None:
        return
    if at is None:
        # PyTorch's fused optimisers treat a gradient's memory as contiguous.
        param.grad = grad.contiguous() if param.grad is None else param.grad.add_(grad)
        return
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    param.grad[at] = grad


def clip_lanes(grads: Sequence[Tensor], most: float) -> None:
    """Scale gradients (D, ...) in place so that the norm of each lane over all tensors is at most `most`.

    The same rule as torch's `clip_grad_norm_`, for each lane.
    """
    if not grads:
        return
    norms = torch.stack(
        [torch.linalg.vector_norm(grad.reshape(len(grad), -1), dim=1, dtype=torch.float32) for grad in grads]
    )
    factors = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factors.view(-1, *[1] * (grad.dim() - 1)).to(grad.dtype))


def _optimizer(settings: LocalTraining, params: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            params, lr=rate, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.AdamW(params, lr=rate, weight_decay=settings.weight_decay, fused=True)
