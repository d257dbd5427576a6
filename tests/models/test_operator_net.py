"""Networks with a differential operator as their score: derivatives, per-sample gradients and curvature by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import hessian, jacrev, vmap

from fibec_ray.curvature.per_sample import catch
from fibec_ray.curvature.sample_formulas import collect_holders
from fibec_ray.models.operator_net import OperatorNet, dense

NUM = 5


def made(num_axes: int = 1) -> OperatorNet:
    """Weights in double precision."""
    torch.manual_seed(0)
    return dense((num_axes + 3,), (7, 6)).double()


def samples(num_axes: int = 1) -> Tensor:
    """Interior points, a boundary point of weight 9, and a test point: (5, d + 3)."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(NUM, num_axes, generator=rng, dtype=torch.float64)
    rows = [[1.0, 1.0, -1.0]] * (NUM - 2) + [[0.0, 3.0, 0.0], [0.0, 1.0, 0.0]]
    return torch.cat([x, torch.tensor(rows, dtype=torch.float64)], 1)


def plain(net: OperatorNet, x: Tensor) -> Tensor:
    """u at one point (d,), by the layers' weights alone."""
    for layer in net.layers:
        x = torch.tanh(layer(x))
    return net.output(x)[0]


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_derivatives_are_those_of_autograd(num_axes: int) -> None:
    net, x = made(num_axes), samples(num_axes)[:, :num_axes]

    def u(point: Tensor) -> Tensor:
        return plain(net, point)

    found, layers = net.taylor(x)
    torch.testing.assert_close(found.value[:, 0], vmap(u)(x))
    torch.testing.assert_close(found.gradient[:, :, 0], vmap(jacrev(u))(x))
    curvature = vmap(hessian(u))(x).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(found.laplacian[:, 0], curvature)
    torch.testing.assert_close(layers[0], torch.tanh(net.layers[0](x)))
    assert [tuple(value.shape) for value in layers] == [(NUM, 7), (NUM, 6)]


def test_a_linear_function_has_no_laplacian() -> None:
    torch.manual_seed(0)
    net = dense((5,), ())
    found, layers = net.taylor(torch.randn(4, 2))
    assert not found.laplacian.any() and layers == []
    torch.testing.assert_close(found.gradient[:, :, 0], net.output.weight.expand(4, 2))


def test_the_score_is_the_operator_of_the_sample() -> None:
    net, features = made(), samples()
    found, _ = net.taylor(features[:, :1])
    u = found.value[:, 0]
    scores, _ = net(features)
    assert scores.shape == (NUM, 1)
    torch.testing.assert_close(scores[:3, 0], (-found.laplacian[:, 0] + u * (1 - u))[:3])
    torch.testing.assert_close(scores[3:, 0], u[3:] * torch.tensor([3.0, 1.0], dtype=torch.float64))


# --- gradients of single samples


def jacobian(net: OperatorNet, features: Tensor) -> dict[str, Tensor]:
    """d score_i / d theta by plain second derivatives: {name: (B, *shape)}."""

    def u(weights: dict[str, Tensor], point: Tensor) -> Tensor:
        for i in range(len(net.layers)):
            point = torch.tanh(weights[f"layers.{i}.weight"] @ point + weights[f"layers.{i}.bias"])
        return (weights["output.weight"] @ point + weights["output.bias"])[0]

    def score(weights: dict[str, Tensor], x: Tensor, c: Tensor) -> Tensor:
        value = u(weights, x)
        laplacian = hessian(u, 1)(weights, x).diagonal().sum()
        return -c[0] * laplacian + c[1] * value + c[2] * value**2

    weights = {name: value.detach() for name, value in net.named_parameters()}
    return vmap(jacrev(score), (None, 0, 0))(weights, features[:, :-3], features[:, -3:])


@pytest.mark.parametrize("num_axes", [1, 2])
def test_gradients_of_single_samples_are_exact(num_axes: int) -> None:
    """From one backward pass through hooks, with each layer called once."""
    net, features = made(num_axes), samples(num_axes)
    names = [name for name, _ in net.named_parameters()]
    with catch(collect_holders(net, lambda name: name), names, NUM) as caught:
        scores, _ = net(features)
    found = caught.gradients(torch.autograd.grad(scores.sum(), caught.tensors))
    expected = jacobian(net, features)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].float())


def test_a_sample_does_not_change_another_ones_score() -> None:
    net, features = made(), samples()
    alone = torch.cat([net(row[None])[0] for row in features])
    torch.testing.assert_close(net(features)[0], alone)
