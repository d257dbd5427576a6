"""Kronecker factors of the Fisher information of a device's data, from batched backward passes.

A Linear y = W a + b has input a_it at token t of sample i, and e_it = -d log p(y | s_i) / dy_it is its output's
gradient. Its Fisher information is approximated by a Kronecker product (K-FAC: Martens and Grosse, ICML 2015),
separately for each layer:

    F  =  (1/N) sum_i E_y[g_i g_i^T],  g_i = vec(sum_t e_it a_it^T)     is about     A (x) G,
    A  =  mean_it a_it a_it^T  (in, in)          G  =  (1/N) sum_it E_y[e_it e_it^T]  (out, out)

with a 1 at the end of a if there is a bias. vec stacks columns, so F vec(X) is about vec(G X A). Tokens count as
independent samples ("expand" in Eschenhagen et al., NeurIPS 2023); padding does not count. It is exact for one token
and one sample, or if all inputs, or all E_y[e e^T], are equal.

Other kinds of module (embedding tables, (IA)^3, LayerNorm ...) get the diagonal of F instead.

Shapes: B samples of a group, N in all, T tokens, `in`/`out` features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fibec_ray.curvature.fisher import LabelPass, by_length, label_passes, weighted
from fibec_ray.curvature.per_sample import Seen
from fibec_ray.likelihoods import Label
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.tensors import Tensors, accumulate


@dataclass(frozen=True)
class Factors:
    """Kronecker factors and diagonals, float32 on the CPU."""

    inputs: Tensors
    """A, by the name prefix of a Linear's tensors"""
    outputs: Tensors
    """G, by the same prefix"""
    diagonal: Tensors
    """diagonals of the tensors of all other modules, by name"""


def kronecker_factors(
    model: LocalModel,
    shard: Shard,
    rows: Tensor,
    names: Collection[str],
    label: Label,
    group_size: int,
    rng: torch.Generator,
) -> Factors:
    """Factors of the named tensors over the samples at `rows` (N,), at the current parameters. In evaluation mode.

    rng: for sampled labels. Raises ModelError for a tensor in an unknown kind of module. Factors of a diverged model
    may not be finite.
    """
    model.train(False)
    draws = torch.rand(shard.num_samples, generator=rng) if label == "sampled" else None
    sums = _Sums()
    for group in by_length(shard, rows, group_size):
        passes = label_passes(model, shard, group, names, label, None if draws is None else draws[group])
        for i, one in enumerate(passes):
            sums.add(one, shard.lengths[group], first=i == 0)
    return sums.factors(len(rows))


class _Sums:
    """Sums of the results of passes over groups of samples."""

    def __init__(self) -> None:
        self._a: Tensors = {}
        self._g: Tensors = {}
        self._squares: Tensors = {}
        self._num_tokens = Counter[str]()

    def add(self, one: LabelPass, lengths: Tensor, first: bool) -> None:
        """Add one pass. first: the first pass over these samples; all passes over them have the same inputs."""
        grads = one.caught.by_prefix(one.grads)
        with torch.no_grad():
            for prefix, seen in one.caught.modules.items():
                if seen.is_linear:
                    self._add_factors(prefix, seen, grads[prefix], one.weights, lengths if first else None)
                else:
                    squares = {n: value.square_() for n, value in seen.gradients(grads[prefix], 1.0).items()}
                    sums = {name: value.sum(0) for name, value in weighted(squares, one.weights).items()}
                    accumulate(self._squares, sums)

    def _add_factors(
        self, prefix: str, seen: Seen, grad: Tensor | None, weights: Tensor | None, lengths: Tensor | None
    ) -> None:
        tokens = seen.tokens(grad)
        if tokens is None:
            return
        a, e = tokens
        e_weighted = e if weights is None else e * weights.view(-1, 1, 1)
        accumulate(self._g, {prefix: e_weighted.flatten(0, 1).T @ e.flatten(0, 1)})
        if lengths is not None:
            real = _real(a, lengths.to(a.device))
            accumulate(self._a, {prefix: real.T @ real})
            self._num_tokens[prefix] += len(real)

    def factors(self, num_samples: int) -> Factors:
        return Factors(
            {prefix: (value / self._num_tokens[prefix]).cpu() for prefix, value in self._a.items()},
            _mean(self._g, num_samples),
            _mean(self._squares, num_samples),
        )


def _real(a: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, in) -> (tokens, in), without padding if the module saw all S tokens of the batch."""
    if a.shape[1] != int(lengths.max()):
        return a.flatten(0, 1)
    return a[torch.arange(a.shape[1], device=a.device) < lengths.unsqueeze(1)]


def _mean(sums: Mapping[str, Tensor], count: int) -> Tensors:
    return {name: (value / count).cpu() for name, value in sums.items()}
