from __future__ import annotations

import torch
from torch import Tensor

from fibec_ray.low_rank import A, B, best_factors, blank, cut, pad, pairs, product_norm, scaled
from fibec_ray.tensors import Tensors


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(rank: int, seed: int = 0) -> Tensors:
    return {f"x{A}": torch.randn(rank, 5, generator=rng(seed)), f"x{B}": torch.randn(7, rank, generator=rng(seed + 1))}


def product(tensors: Tensors) -> Tensor:
    return tensors[f"x{B}"] @ tensors[f"x{A}"]


def test_a_pair_needs_both_matrices() -> None:
    assert pairs({**pair(2), f"y{A}": torch.zeros(1), "head.weight": torch.zeros(1)}) == ["x"]


def test_cutting_then_padding_is_blanking() -> None:
    values = {**pair(4), "head.weight": torch.ones(3, 2)}
    short = cut(values, 3)
    assert short[f"x{A}"].shape == (3, 5) and short[f"x{B}"].shape == (7, 3)
    assert short["head.weight"] is values["head.weight"]
    whole = pad(short, values)
    assert all(torch.equal(whole[name], value) for name, value in blank(values, 3).items())
    assert whole[f"x{A}"].shape == (4, 5) and not whole[f"x{A}"][3].any() and not whole[f"x{B}"][:, 3].any()


def test_a_rank_beyond_the_tensors_changes_nothing() -> None:
    assert torch.equal(cut(pair(2), 9)[f"x{A}"], pair(2)[f"x{A}"])


def test_scaling_both_factors_scales_their_product() -> None:
    torch.testing.assert_close(product(scaled(pair(3), 2.0)), 2 * product(pair(3)))
    assert scaled(pair(3), 1.0)[f"x{A}"].equal(pair(3)[f"x{A}"])


def test_the_norm_of_a_product_needs_no_product() -> None:
    values = pair(3)
    torch.testing.assert_close(product_norm(values[f"x{A}"], values[f"x{B}"]), float(product(values).norm()))
    assert product_norm(values[f"x{A}"], torch.zeros(7, 3)) == 0


def test_the_best_factors_are_those_of_the_dense_sum() -> None:
    """The error is the root of the sum of squares of the singular values that are cut off (Eckart and Young)."""
    terms = [pair(rank, 10 * rank) for rank in (1, 2, 1)]
    dense = torch.stack([product(term).double() for term in terms]).sum(0)
    expected = torch.linalg.svdvals(dense)
    for rank in (1, 2, 4, 5):
        b, a, values = best_factors([t[f"x{B}"] for t in terms], [t[f"x{A}"] for t in terms], rank)
        assert b.shape == (7, rank) and a.shape == (rank, 5)
        torch.testing.assert_close(values, expected[: len(values)], rtol=1e-6, atol=1e-6)
        lost = expected[rank:].square().sum().sqrt()
        torch.testing.assert_close((b @ a - dense).norm(), lost, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1), rtol=1e-5, atol=1e-5)
