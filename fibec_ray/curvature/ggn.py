"""The largest eigenpairs of the generalised Gauss-Newton matrix of a device's loss.

    H = (1/N) sum_i J_i^T S_i J_i,   J_i = d scores_i / d theta,   S_i = diag(p_i) - p_i p_i^T, or I in a regression

over samples i and the C classes (with a verbaliser: only its label words), at the model's current parameters. With
several yes-or-no labels, S_i = diag(p_i (1 - p_i)). This is the full Fisher information with labels drawn from the
model. With S_i = L_i L_i^T (`likelihoods`) it is H = G G^T for columns g_ic = J_i^T L_i[:, c] / sqrt(N), which are
gradients of single samples. Its rank is at most the number of columns, N (C - 1) for classes and N in a regression, so:
- gram: all columns at once; from (G^T G) V = V Lam, U = G V Lam^{-1/2}. Exact;
- subspace: randomised subspace iteration (Halko, Martinsson, Tropp 2011) on H V = sum_ic g_ic (g_ic^T V), which keeps
the columns of only one group of samples at a time.

For text answers, H = (1/N) sum_i (1/T_i) sum_t J_it^T S_it J_it over the T_i tokens of each response, and S_it is as
wide as the vocabulary. It is therefore estimated. For tokens y_it drawn from the model, e_it = p_it - onehot(y_it) has
mean 0 and second moment S_it, so columns sum_t J_it^T e_it / sqrt(N T_i m) of m drawn responses have G G^T = H in
expectation (Martens 2020, "New insights and perspectives on the natural gradient method"). The rank is at most N m.

Shapes: N samples, B of a group, C classes, p entries in a block's tensors, m columns, r eigenpairs; R tokens of all
responses of a group, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fibec_ray.curvature.fisher import by_length
from fibec_ray.errors import ModelError
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.tensors import Tensors

Way = Literal["auto", "gram", "subspace"]
"""auto: gram, unless its columns would need more than GRAM_BYTES"""

CHUNK = 16
"""Samples with gradients in memory at once."""
GRAM_BYTES = 2**28
"""Limit for the float32 columns of all blocks, which a Gram matrix needs at once."""
FLOOR = 1e-8
"""Smaller eigenvalues, relative to a block's largest, are rounding errors."""
OVERSAMPLE = 10
"""Extra vectors of a subspace iteration beyond r, as in FIPA's published code."""
POWERS = 2
"""Multiplications of the random start by H before eigenvalues are computed."""


@dataclass(frozen=True)
class Eigenpairs:
    """The largest eigenpairs of one block: H is approximately U diag(values) U^T, U^T U = I."""

    vectors: Tensors
    """rows of U (p, r) for each tensor, {name: (*shape, r)} float32 on the CPU"""
    values: Tensor
    """(r,) float32 on the CPU, descending and above 0; fewer than requested, possibly none, if H has a lower rank"""


def top_eigenpairs(
    model: LocalModel,
    shard: Shard,
    rows: Tensor,
    blocks: Mapping[str, Sequence[str]],
    rank: int,
    rng: torch.Generator,
    way: Way = "auto",
) -> dict[str, Eigenpairs]:
    """The `rank` largest eigenpairs of each block's own H, ignoring curvature between blocks. In evaluation mode.

    rows: (N,) positions within the shard. blocks: names of trainable tensors, by block. rng: for subspace iteration and
    drawn tokens. Costs a forward and C - 1 backward passes over the samples (TOKEN_DRAWS for text answers), for all
    blocks together; subspace costs POWERS + 1 times that. Raises ModelError for a tensor in an unknown kind of module.
    """
    if not blocks:
        return {}
    model.train(False)
    columns = _Columns(model, shard, rows, blocks, rng)
    if way == "auto":
        way = "gram" if 4 * columns.num_columns * sum(columns.sizes.values()) <= GRAM_BYTES else "subspace"
    pairs = _by_gram(columns, rank) if way == "gram" else _by_subspace(columns, rank, rng)
    return {block: _by_name(model, blocks[block], *pairs[block]) for block in blocks}


class _Columns:
    """The columns of G for each block, in groups; can be iterated repeatedly."""

    def __init__(
        self,
        model: LocalModel,
        shard: Shard,
        rows: Tensor,
        blocks: Mapping[str, Sequence[str]],
        rng: torch.Generator,
    ):
        self._model, self._shard, self._rows, self._blocks = model, shard, rows, blocks
        self.sizes = {block: sum(model.trainable[n].numel() for n in names) for block, names in blocks.items()}
        """p by block"""
        with torch.no_grad():
            out = model.forward(shard.batch(rows[:1]))
        self.num_columns = len(rows) * out.likelihood.num_columns(out.scores.shape[1])
        num_draws = out.likelihood.num_draws
        self._draws = torch.rand(shard.num_samples, num_draws, generator=rng) if num_draws else None
        self.device = next(iter(model.trainable.values())).device

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """{block: (B, p)} float32: the transposed columns of one group of samples and one c."""
        names = [name for names in self._blocks.values() for name in names]
        for group in by_length(self._shard, self._rows, CHUNK):
            draws = None if self._draws is None else self._draws[group]
            for grads in sample_gradients(self._model, self._shard, group, names, draws):
                scaled = {name: value.flatten(1) / len(self._rows) ** 0.5 for name, value in grads.items()}
                yield {block: torch.cat([scaled[n] for n in inside], 1) for block, inside in self._blocks.items()}


def sample_gradients(
    model: LocalModel, shard: Shard, rows: Tensor, names: Collection[str], draws: Tensor | None = None
) -> Iterator[Tensors]:
    """J_i^T L_i[:, c] of the samples at `rows` for each column c of L_i: {name: (B, *shape)} float32.

    draws: (B, m) uniform in [0, 1), for the m drawn responses that replace L_i with text answers.
    """
    before = model.work.backward_flops
    out, caught = model.per_sample_grads(shard.batch(rows), names)
    backward_flops = model.work.backward_flops - before  # the model counts one backward pass
    num, cotangent = out.likelihood.columns(out.scores, draws)
    for c in range(num):
        model.work.flops += backward_flops if c else 0.0
        wanted = cotangent(c).to(out.scores.dtype)
        grads = model.grad(out.scores, caught.tensors, wanted, retain_graph=c + 1 < num)
        found = caught.gradients(grads)
        if not all(bool(value.isfinite().all()) for value in found.values()):
            raise ModelError("the Gauss-Newton matrix is not finite; lower local.learning_rate")
        yield found


# --- eigenpairs from columns: U (p, r) and values (r,), float64


def _by_gram(columns: _Columns, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    g = {b: torch.empty(columns.num_columns, p, device=columns.device) for b, p in columns.sizes.items()}
    filled = 0
    for part in columns:
        for block, rows in part.items():
            g[block][filled : filled + len(rows)] = rows
        filled += len(rows)
    return {block: gram_eigenpairs(value, rank) for block, value in g.items()}


def gram_eigenpairs(g: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest eigenpairs of G G^T. g: (m, p), G^T."""
    g = g.double()
    values, vectors = _largest(g @ g.T, rank)
    return g.T @ (vectors / values.sqrt()), values


def _by_subspace(columns: _Columns, rank: int, rng: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    width = {block: min(rank + OVERSAMPLE, p) for block, p in columns.sizes.items()}
    start = {b: torch.randn(p, width[b], generator=rng, dtype=torch.float64) for b, p in columns.sizes.items()}
    return subspace_eigenpairs(columns, {b: value.to(columns.device) for b, value in start.items()}, rank, POWERS)


def subspace_eigenpairs(
    columns: Iterable[Mapping[str, Tensor]], start: Mapping[str, Tensor], rank: int, powers: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Q = orth(start), `powers` times Q <- orth(H Q), then Rayleigh-Ritz: the eigenpairs of Q^T H Q.

    columns: iterated powers + 1 times; each item has some rows of G^T, (B, p) by block. start: (p, rank + more).
    """
    basis = {block: torch.linalg.qr(value).Q for block, value in start.items()}
    for _ in range(powers):
        basis = {block: torch.linalg.qr(value).Q for block, value in _products(columns, basis).items()}
    found = {}
    for block, product in _products(columns, basis).items():
        small = basis[block].T @ product
        values, vectors = _largest((small + small.T) / 2, rank)
        found[block] = basis[block] @ vectors, values
    return found


def _products(columns: Iterable[Mapping[str, Tensor]], basis: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """H Q by block, without storing G."""
    sums = {block: torch.zeros_like(q) for block, q in basis.items()}
    for part in columns:
        for block, rows in part.items():
            g = rows.double()
            sums[block].addmm_(g.T, g @ basis[block])
    return sums


def _largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues (r,), descending, and their vectors; without those that are 0 up to rounding.

    A matrix that is not finite, as after divergence, gives one NaN eigenvalue.
    """
    if not matrix.isfinite().all():
        return matrix.new_full((1,), torch.nan), torch.zeros_like(matrix[:, :1])
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[:rank].clamp(min=0), vectors.flip(1)[:, :rank]
    keep = int((values > FLOOR * values[0]).sum())
    return values[:keep], vectors[:, :keep]


def _by_name(model: LocalModel, names: Sequence[str], vectors: Tensor, values: Tensor) -> Eigenpairs:
    shapes = [model.trainable[name].shape for name in names]
    parts = vectors.float().cpu().split([shape.numel() for shape in shapes])
    named = {n: part.reshape(*shape, -1) for n, part, shape in zip(names, parts, shapes, strict=True)}
    return Eigenpairs(named, values.float().cpu())
