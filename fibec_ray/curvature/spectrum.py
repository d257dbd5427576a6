"""The share of parameter directions that a device must keep, from the spectrum of its loss's Hessian.

Used to derive a number of shared layers or trained neurons from the data. H is the Hessian of the mean loss over some
samples, restricted to the named trainable tensors. Only products of H with vectors are computed.

Shapes: d entries in the named tensors, k Ritz values, B samples. Flat vectors and spectra are float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from fibec_ray.model_types import Batch, LocalModel, Shard
from fibec_ray.tensors import Tensors

Rule = Literal["lossless_gap", "slq_plateau"]
MatVec = Callable[[Tensor], Tensor]
"""(d,) -> (d,), a new tensor: a symmetric matrix times a vector"""

CHUNK = 16
"""Samples in memory at once."""
LIPSCHITZ_ITERATIONS = 10
"""Lanczos iterations for the largest eigenvalue, which converges early."""
ROUNDING = 1e-6
"""Values below this share of the largest are noise, since models compute in float32."""


class SpectrumSettings(BaseModel, frozen=True, extra="forbid"):
    """Accuracy of the spectrum. 50 iterations from 1 probe are FedPepTAO's code; the other values are ours."""

    max_samples: int = Field(16, ge=1, description="samples for the Hessian, drawn once")
    num_iterations: int = Field(50, ge=2, description="Lanczos iterations; as many as parameters is exact")
    num_probes: int = Field(1, ge=1, description="random start vectors of Lanczos; their spectra are averaged")
    step: float = Field(3e-3, gt=0, description="lossless_gap: size of a random step for the Lipschitz constant")
    num_steps: int = Field(3, ge=1, description="lossless_gap: random steps per displacement")
    num_displacements: int = Field(2, ge=1, description="lossless_gap: number of displacements; the worst counts")


def refuse_unused(settings: SpectrumSettings, rule: Rule | None, switch: str) -> None:
    """Raise ValueError for a changed setting without effect. rule: None if no spectrum is used."""
    changed = [name for name, value in settings if value != getattr(SpectrumSettings(), name)]
    if changed and rule is None:
        raise ValueError(f"spectrum has no effect unless {switch} is lossless_gap or slq_plateau; leave it out")
    unused = [name for name in changed if name in ("step", "num_steps", "num_displacements")]
    if unused and rule == "slq_plateau":
        raise ValueError(f"spectrum.{unused[0]} has an effect only with {switch}: lossless_gap; leave it out")


def keep_ratio(
    rule: Rule,
    model: LocalModel,
    shard: Shard,
    names: Collection[str],
    settings: SpectrumSettings,
    rng: torch.Generator,
) -> float:
    """The share of directions to keep, in [0, 1], for the named tensors at their current values.

    Uses only `rng` for randomness. Leaves parameters bit-identical, and the model in evaluation mode.
    """
    model.train(False)
    rows = torch.randperm(shard.num_samples, generator=rng)[: settings.max_samples]
    batches = [shard.batch(part) for part in rows.split(CHUNK)]
    dim = sum(model.trainable[name].numel() for name in names)
    product = hessian_product(model, batches, names)
    values, weights = ritz(product, dim, settings.num_iterations, settings.num_probes, rng)
    if rule == "slq_plateau":
        return slq_plateau(values, weights)
    del product  # and the graph that it holds
    return lossless_gap(values, weights, lipschitz(model, batches, names, settings, rng))


# --- the rules


def lossless_gap(values: Tensor, weights: Tensor, lipschitz: float) -> float:
    """1 - m/d with the smallest m such that l_{m+1} - l_m > 4 L_k; 1 (keep all) if there is none. In (0, 1].

    The rule of the lossless pruning in other work of FibecFed's authors (FedAP, FedPepTAO); that FibecFed uses it is
    our reading. values: (k,) ascending. weights: (k,) the share of directions at each, so that m/d is a sum of weights.
    lipschitz: L_k. Gaps within rounding do not count.

    With few Ritz values for many directions, their gaps overestimate those of the true spectrum: a gap is found too
    early, and too much is kept. If only the top eigenvalue stands out by 4 L_k (observed on LoRA after some training),
    almost nothing is kept.
    """
    least = max(4 * lipschitz, ROUNDING * float(values.abs().max()))
    wide = (values.diff() > least).nonzero()
    return float(weights[int(wide[0]) + 1 :].sum()) if len(wide) else 1.0


def slq_plateau(values: Tensor, weights: Tensor) -> float:
    """The share above t at the point where it stops falling as t grows, as in the published code of FedPepTAO.

    Goes through t = 0, .1, .2, ... until three changes in a row are below .005. If the share falls below half of its
    value at t = 0 first, it starts again with half the increment. This terminates: the smoothed share is continuous, so
    small enough increments change it by less than .005.

    If nearly all eigenvalues are within .003 of 0 (observed on LoRA), the smoothing alone puts about half of them above
    0, and the result is between 1/4 and 1/2 for any data.
    """
    assert values.isfinite().all()  # else the loop would not end
    increment = 0.1
    while True:
        t, num_small = 0.0, 0
        ratio = first = share_above(values, weights, t)
        while ratio >= first / 2:
            if num_small == 3:
                return ratio
            t, before = t + increment, ratio
            ratio = share_above(values, weights, t)
            num_small = num_small + 1 if before - ratio < 0.005 else 0
        increment /= 2


def share_above(values: Tensor, weights: Tensor, t: float) -> float:
    """Share of the spectrum above t, with each value as a Gaussian, within .01 of the outermost values (as in
    PyHessian).

    sigma^2 = 1e-5 max(1, range). Uses the Gaussian's distribution function, where PyHessian sums 10000 bins. Results
    agree up to a bin's width, and no value falls between bins when the range is large.
    """
    margin = max(0.01, 1e-12 * float(values.abs().max()))  # floats near 1e15 have no neighbour .01 away
    low, high = float(values.min()) - margin, float(values.max()) + margin
    sigma = (1e-5 * max(1.0, high - low)) ** 0.5
    edges = torch.tensor([low, min(max(t, low), high), high], dtype=torch.float64)
    below = torch.special.ndtr((edges.unsqueeze(1) - values) / sigma) @ weights
    return float((below[2] - below[1]) / (below[2] - below[0]))


# --- the spectrum


def ritz(matvec: MatVec, dim: int, num_iterations: int, num_probes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ritz values (k,) ascending, and the share of eigenvalues that each represents: (k,), summing to 1.

    Lanczos from random signs, with weights by Gauss quadrature (Ubaru, Chen, Saad 2017). It stops after as many
    iterations as there are distinct eigenvalues. If num_iterations >= dim: all eigenvalues, with weights 1/d.
    """
    if num_iterations >= dim:
        dense = torch.stack([matvec(unit) for unit in torch.eye(dim, dtype=torch.float64)])
        return torch.linalg.eigvalsh((dense + dense.T) / 2), torch.full((dim,), 1 / dim, dtype=torch.float64)
    probes = [_signs(dim, rng) / dim**0.5 for _ in range(num_probes)]
    spectra = [_lanczos(matvec, probe, num_iterations) for probe in probes]
    values, order = torch.cat([values for values, _ in spectra]).sort(stable=True)
    return values, torch.cat([weights for _, weights in spectra])[order] / num_probes


def _lanczos(matvec: MatVec, start: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Ritz values and weights, (k,) each, from `start`, (d,) of length 1."""
    from linear_operator.utils.lanczos import lanczos_tridiag

    product = matvec(start)
    mean, scale = start @ product, float(product.norm())
    # The library divides by 0 if the first residual is 0, and treats values below 1e-6 as 0: hence `scale`.
    if float((product - mean * start).norm()) <= ROUNDING * scale:
        return mean.view(1), torch.ones(1, dtype=torch.float64)
    _, tridiagonal = lanczos_tridiag(
        lambda column: matvec(column.squeeze(1)).div_(scale).unsqueeze(1),
        num_iterations,
        dtype=torch.float64,
        device=start.device,
        matrix_shape=torch.Size((len(start), len(start))),
        init_vecs=start.unsqueeze(1),
    )
    values, vectors = torch.linalg.eigh(tridiagonal)
    return values * scale, vectors[0].square()


def _signs(dim: int, rng: torch.Generator) -> Tensor:
    """(dim,) float64 of -1 and 1."""
    return 2 * torch.randint(2, (dim,), generator=rng).double() - 1


# --- the Hessian


def hessian_product(model: LocalModel, batches: Sequence[Batch], names: Collection[str]) -> MatVec:
    """Return v -> H v at the parameters' current values. Create a new one after loading other values.

    Two backward passes (Pearlmutter 1994). Holds the graph of one batch; a single batch keeps its graph between
    products, which halves the time. Call it in evaluation mode.
    """
    params = [param for name, param in model.trainable.items() if name in names]
    sizes = [param.numel() for param in params]
    num_samples = sum(len(batch.labels) for batch in batches)
    kept = [_gradient(model, batches[0], params)] if len(batches) == 1 else None

    def product(vector: Tensor) -> Tensor:
        parts = [part.view_as(param).to(param) for part, param in zip(vector.split(sizes), params, strict=True)]
        total = torch.zeros_like(vector)
        for grads, flops in kept or (_gradient(model, batch, params) for batch in batches):
            found = torch.autograd.grad(grads, params, parts, retain_graph=True, materialize_grads=True)
            total += torch.cat([value.flatten().double().cpu() for value in found])
            model.work.flops += flops  # a backward pass through both costs about as much as both
        if not total.isfinite().all():
            raise FloatingPointError("the curvature of the loss is not finite")  # the device's number is added later
        return total / num_samples

    return product


def _gradient(model: LocalModel, batch: Batch, params: Sequence[nn.Parameter]) -> tuple[tuple[Tensor, ...], float]:
    """Gradient of the summed losses, with its graph; and the flops of the two passes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = model.work.flops
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        losses = model.forward(batch).losses
        return torch.autograd.grad(losses.sum(), params, create_graph=True), model.work.flops - before


def lipschitz(
    model: LocalModel,
    batches: Sequence[Batch],
    names: Collection[str],
    settings: SpectrumSettings,
    rng: torch.Generator,
) -> float:
    """L_k of B_k(D) = H_k D - grad F_k(P0 + D): the largest norm of its derivative, H(P0) - H(P0 + D).

    The maximum over a few D, each a sum of some steps of one size with random signs, like AdamW's (our choice). Lanczos
    gives a lower bound of each norm. Leaves the parameters unchanged.
    """
    start, norms = model.read(names), []
    dim = sum(value.numel() for value in start.values())
    for _ in range(settings.num_displacements):
        moved = {}
        for name, value in start.items():
            steps = torch.stack([_signs(value.numel(), rng) for _ in range(settings.num_steps)]).sum(0)
            moved[name] = (value + settings.step * steps.view_as(value)).to(value.dtype)
        change = _change(model, batches, start, moved)
        values, _ = ritz(change, dim, LIPSCHITZ_ITERATIONS, 1, rng)
        norms.append(float(values.abs().max()))
    return max(norms)


def _change(model: LocalModel, batches: Sequence[Batch], start: Tensors, moved: Tensors) -> MatVec:
    """v -> (H(moved) - H(start)) v; `start` is loaded again after each product and after an error."""

    def change(vector: Tensor) -> Tensor:
        model.load(moved)
        try:
            there = hessian_product(model, batches, moved)(vector)
        finally:
            model.load(start)
        return there - hessian_product(model, batches, start)(vector)

    return change
