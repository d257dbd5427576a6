"""The product that frozen Linears have on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fibec_ray.models.kernels import keep_heap, products, speed_up

OTHER = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2), torch.float64: (0.0, 0.0)}


def pair(dtype: torch.dtype, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias).to(dtype).requires_grad_(False)
    fast = copy.deepcopy(plain)
    speed_up(fast)
    return plain, fast


@pytest.mark.parametrize("dtype", OTHER)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (2, 1, 3, 24)])
def test_values_and_gradients_are_those_of_linear(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    plain, fast = pair(dtype, bias)
    atol, rtol = OTHER[dtype]
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    expected, found = plain(x), fast(x)
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)
    e = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, x, e)
    torch.testing.assert_close(torch.autograd.grad(found, x, e)[0], gradient, atol=4 * atol, rtol=rtol)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 3), (3, 24)])
def test_what_is_trained_has_the_gradients_of_linear(inputs: int, outputs: int, bias: bool) -> None:
    """LoRA's two shapes: many columns by few, and the reverse."""
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs, bias=bias)
    fast = copy.deepcopy(plain)
    speed_up(fast)
    x = torch.randn(2, 5, inputs, requires_grad=True)
    e = torch.randn(2, 5, outputs)
    expected = torch.autograd.grad(plain(x), [x, *plain.parameters()], e)
    found = torch.autograd.grad(fast(x), [x, *fast.parameters()], e)
    torch.testing.assert_close(fast(x), plain(x))
    torch.testing.assert_close(found, expected)


def test_lanes_are_products_of_their_own() -> None:
    """Two lanes by hand: [1, 2] . [3, 4] = 11, and [5, 6] . [-1, 1] = 1; biases 1 and -1."""
    x, weights = torch.tensor([[[1.0, 2.0]], [[5.0, 6.0]]]), torch.tensor([[[3.0, 4.0]], [[-1.0, 1.0]]])
    assert products(x, weights, None).flatten().tolist() == [11, 1]
    assert products(x, weights, torch.tensor([[[1.0]], [[-1.0]]])).flatten().tolist() == [12, 0]


def test_second_derivatives_of_what_is_trained() -> None:
    x, weights = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 5, 4, requires_grad=True)

    def twice(y: Tensor) -> Tensor:
        grads = torch.autograd.grad(y.pow(3).sum(), (x, weights), create_graph=True)
        return torch.cat([g.flatten() for g in torch.autograd.grad(sum(g.sum() for g in grads), (x, weights))])

    torch.testing.assert_close(twice(products(x, weights, None)), twice(torch.bmm(x, weights.mT)))


def test_second_derivatives_go_through_it() -> None:
    _, fast = pair(torch.float32)
    x = torch.randn(2, 24, requires_grad=True)
    (first,) = torch.autograd.grad(fast(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    y = nn.functional.linear(x, fast.weight, fast.bias)
    expected = (6 * y * fast.weight.sum(1)) @ fast.weight
    torch.testing.assert_close(second, expected, atol=1e-4, rtol=1e-4)


def test_its_output_may_be_changed_in_place() -> None:
    """As some adapters of peft do."""
    _, fast = pair(torch.float32)
    x = torch.randn(2, 3, 24, requires_grad=True)
    out = fast(x)
    out += 1.0
    out.sum().backward()
    assert x.grad is not None


def test_it_works_under_vmap() -> None:
    plain, fast = pair(torch.float32)
    x = torch.randn(4, 2, 24)
    torch.testing.assert_close(torch.func.vmap(fast)(x), plain(x))
    weights = torch.randn(4, 1, 3, 24)
    both = torch.func.vmap(lambda a, w: products(a.unsqueeze(0), w, None))(x, weights)
    torch.testing.assert_close(both, x.unsqueeze(1) @ weights.mT)


def test_keeping_the_heap_is_asked_of_the_c_library_that_has_it() -> None:
    keep_heap()
    assert torch.ones(10**6).sum() == 10**6
