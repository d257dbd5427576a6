"""The products that frozen Linears can have on a CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_BERT
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from fibec_ray.models.backbone import prepare
from fibec_ray.models.backends import hold
from fibec_ray.models.kernels import in_float32, keep_heap, onednn, speed_up
from fibec_ray.models.products import NAMES, OF_BFLOAT16, candidates, has_onednn
from fibec_ray.models.spec import Backbone

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}
NAME = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}
PAIRS = [
    (products, dtype)
    for dtype in TOLERANCE
    for products in (candidates(NAME[dtype]) if dtype != torch.float64 else NAMES)
]


def pair(products: Any, dtype: torch.dtype, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias).to(dtype).requires_grad_(False)
    fast = copy.deepcopy(plain)
    speed_up(fast, CPU, products)
    return plain, fast


@pytest.mark.parametrize(("products", "dtype"), PAIRS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (2, 1, 3, 24)])
def test_values_and_gradients_are_those_of_linear(
    products: Any, dtype: torch.dtype, bias: bool, shape: tuple[int, ...]
) -> None:
    plain, fast = pair(products, dtype, bias)
    near = TOLERANCE[dtype]
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    expected, found = plain(x), fast(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=near, rtol=near)
    e = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, x, e)
    torch.testing.assert_close(torch.autograd.grad(found, x, e)[0], gradient, atol=4 * near, rtol=near)


@pytest.mark.parametrize(("products", "dtype"), PAIRS)
def test_gpt2_layers_use_it_too(products: Any, dtype: torch.dtype) -> None:
    """Their weights are (in, out)."""
    torch.manual_seed(0)
    plain = Conv1D(40, 24).to(dtype).requires_grad_(False)
    nn.init.normal_(plain.bias)
    fast, near = copy.deepcopy(plain), TOLERANCE[dtype]
    speed_up(fast, CPU, products)
    x, e = torch.randn(2, 5, 24, dtype=dtype, requires_grad=True), torch.randn(2, 5, 40, dtype=dtype)
    expected, found = plain(x), fast(x)
    torch.testing.assert_close(found, expected, atol=near, rtol=near)
    gradient, own = (torch.autograd.grad(y, x, e)[0] for y in (expected, found))
    torch.testing.assert_close(own, gradient, atol=near, rtol=near)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("multiply", [F.linear, pytest.param(onednn, marks=needs_onednn)])
def test_a_bfloat16_product_in_float32_is_the_rounded_one_of_cast_tensors(
    multiply: Any, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block, and in blocks of 64 outputs, the last one smaller; forward and backward."""
    torch.manual_seed(0)
    x, weight, b = torch.randn(3, 24).bfloat16(), torch.randn(150, 24).bfloat16(), torch.randn(150).bfloat16()
    expected = F.linear(x.float(), weight.float(), b.float() if bias else None).bfloat16()
    backward = (expected.float() @ weight.float()).bfloat16()
    for block in (2**20, 64 * 24):
        monkeypatch.setattr("fibec_ray.models.kernels.BLOCK", block)
        found = in_float32(multiply, x, weight, b if bias else None)
        torch.testing.assert_close(found, expected, atol=0, rtol=8e-3)
        wide = torch.randn(24, 150).bfloat16()  # 24 outputs of 150 inputs, as the backward pass has
        torch.testing.assert_close(in_float32(multiply, expected, weight.t(), None), backward, atol=0.05, rtol=8e-3)
        assert in_float32(multiply, wide, weight.t(), None).shape == (24, 24)


def test_what_is_trained_keeps_its_own_product() -> None:
    layer = nn.Linear(3, 2)
    speed_up(layer, CPU)
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None and "forward" not in vars(layer)


@pytest.mark.parametrize(("products", "dtype"), [each for each in PAIRS if each[1] != torch.float64])
def test_second_derivatives_go_through_it(products: Any, dtype: torch.dtype) -> None:
    _, fast = pair(products, dtype)
    x = torch.randn(2, 24, dtype=dtype, requires_grad=True)
    (first,) = torch.autograd.grad(fast(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    y = F.linear(x, fast.weight, fast.bias)
    expected = (6 * y * fast.weight.sum(1)) @ fast.weight
    near = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(second, expected, atol=near, rtol=near)


@pytest.mark.parametrize(("products", "dtype"), PAIRS)
def test_its_output_may_be_changed_in_place(products: Any, dtype: torch.dtype) -> None:
    """As some adapters of peft do."""
    _, fast = pair(products, dtype)
    x = torch.randn(2, 3, 24, dtype=dtype, requires_grad=True)
    out = fast(x)
    out += 1.0
    out.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(("products", "dtype"), PAIRS)
def test_it_works_under_vmap(products: Any, dtype: torch.dtype) -> None:
    plain, fast = pair(products, dtype)
    x, near = torch.randn(4, 2, 24, dtype=dtype), TOLERANCE[dtype]
    torch.testing.assert_close(torch.func.vmap(fast)(x), plain(x), atol=near, rtol=near)


@pytest.mark.parametrize("products", OF_BFLOAT16)
def test_convolutions_of_a_bfloat16_base_are_computed_in_float32_too(products: Any) -> None:
    if products not in candidates("bfloat16"):
        pytest.skip("this torch has no oneDNN")
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, padding=1, groups=2).bfloat16().requires_grad_(False)
    fast, trained = copy.deepcopy(plain), nn.Conv2d(4, 6, 3).bfloat16()
    speed_up(nn.ModuleList([fast, trained]), CPU, products)
    assert "forward" in vars(fast) and "forward" not in vars(trained)
    x, e = (torch.randn(2, channels, 5, 5).bfloat16() for channels in (4, 6))
    x.requires_grad_()
    expected, found = plain(x), fast(x)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    gradient, own = (torch.autograd.grad(y, x, e)[0] for y in (expected, found))
    torch.testing.assert_close(own, gradient, atol=4e-2, rtol=2e-2)


def test_a_layer_in_another_dtype_than_its_input_is_left_to_pytorch() -> None:
    """T5 keeps some layers of a bfloat16 base in float32."""
    layer = nn.Linear(3, 2).requires_grad_(False)
    speed_up(layer, CPU)
    with pytest.raises(RuntimeError, match="dtype"):
        layer(torch.ones(1, 3, dtype=torch.bfloat16))


def test_a_model_that_is_cast_afterwards_is_multiplied_by_pytorch() -> None:
    x = torch.randn(4, 24, dtype=torch.float64)
    plain, fast = (each.double() for each in pair("auto", torch.float32))
    assert torch.equal(fast(x), plain(x))


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
        speed_up(layer, CPU)
        assert ("forward" in vars(layer)) == has_onednn()


def test_a_plain_base_for_another_device_has_torchs_own_products(tmp_path: Path) -> None:
    spec = Backbone(init="random", config={**TINY_BERT, "vocab_size": 50}, tokenizer="minilm")
    folder = prepare(spec, 0, 2, tmp_path)
    for device in ("cpu", "cuda"):
        held = hold("plain", spec, folder, torch.device(device))  # its weights are on the CPU
        held.finish(held.base)
        linears = [layer for layer in held.base.modules() if isinstance(layer, nn.Linear)]
        assert {"forward" in vars(layer) for layer in linears} == {device == "cpu" and has_onednn()}
