"""The product that frozen Linears have on a CPU."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import TINY_BERT
from torch import nn

from fibec_ray.models.backbone import prepare
from fibec_ray.models.backends import hold
from fibec_ray.models.kernels import keep_heap, speed_up
from fibec_ray.models.spec import Backbone

OTHER = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2), torch.float64: (0.0, 0.0)}


def pair(dtype: torch.dtype, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias).to(dtype).requires_grad_(False)
    fast = copy.deepcopy(plain)
    speed_up(fast, torch.device("cpu"))
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


def test_what_is_trained_keeps_its_own_product() -> None:
    layer = nn.Linear(3, 2)
    speed_up(layer, torch.device("cpu"))
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None and "forward" not in vars(layer)


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


def test_keeping_the_heap_is_asked_of_the_c_library_that_has_it() -> None:
    keep_heap()
    assert torch.ones(10**6).sum() == 10**6


def test_the_product_is_chosen_by_the_device_that_computes() -> None:
    """Weights may still be on the CPU when the model is on its way to a GPU, or be nowhere yet."""
    for place in ("cpu", "meta"):
        for device in ("cuda", "cuda:1", "meta", "mps"):
            layer = nn.Linear(3, 2, device=place).requires_grad_(False)
            speed_up(layer, torch.device(device))
            assert "forward" not in vars(layer)
        layer = nn.Linear(3, 2, device=place).requires_grad_(False)
        speed_up(layer, torch.device("cpu"))
        assert "forward" in vars(layer)


def test_a_plain_base_for_another_device_has_torchs_own_products(tmp_path: Path) -> None:
    spec = Backbone(init="random", config={**TINY_BERT, "vocab_size": 50}, tokenizer="minilm")
    folder = prepare(spec, 0, 2, tmp_path)
    for device in ("cpu", "cuda"):
        held = hold("plain", spec, folder, torch.device(device))  # its weights are on the CPU
        held.finish(held.base)
        linears = [layer for layer in held.base.modules() if isinstance(layer, nn.Linear)]
        assert {"forward" in vars(layer) for layer in linears} == {device == "cpu"}
