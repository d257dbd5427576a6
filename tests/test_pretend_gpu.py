"""The pretended GPU finds what CUDA would refuse, and lets pass what CUDA accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from pretend_gpu import MixedDevices, pretend_gpu
from torch import Tensor, nn

from fibec_ray.models.kernels import speed_up


@pytest.fixture
def gpu() -> Iterator[None]:
    with pretend_gpu():
        yield


REFUSED: dict[str, Callable[[Tensor], object]] = {
    "a sum with a host tensor": lambda x: x + torch.ones(3),
    "a product with a host tensor": lambda x: torch.ones(2, 3) @ x,
    "a host index of a host tensor by a GPU tensor": lambda x: torch.ones(3)[x[0].long()],
    "a stack with a scalar on the host": lambda x: torch.stack([x.sum(), torch.tensor(0.0)]),
    "a sum into a scalar on the host": lambda x: torch.tensor(0.0).add_(x.sum()),
    "a write into a host tensor": lambda x: torch.zeros(3, 3).mul_(x),
    "a CPU's random numbers": lambda x: x.normal_(generator=torch.Generator()),
    "a CPU's random numbers in a new tensor": lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
    "oneDNN": lambda x: torch.ops.mkldnn._linear_pointwise(x, x, None, "none", [], ""),
}
ACCEPTED: dict[str, Callable[[Tensor], Tensor]] = {
    "a new tensor like it": torch.zeros_like,
    "a new tensor on its device": lambda x: torch.arange(3, device=x.device) + x,
    "a scalar on the host": lambda x: x * torch.tensor(2.0),
    "an index on the host": lambda x: x[torch.tensor([0, 2])],
    "a copy of a host tensor": lambda x: x.copy_(torch.ones(3, 3)),
    "a host tensor moved to it": lambda x: x + torch.ones(3).to(x),
    "a module moved to it": lambda x: nn.Linear(3, 3).to(x.device)(x),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses(what: str, gpu: None) -> None:
    x = torch.zeros(3, 3, device="cuda")
    with pytest.raises(MixedDevices):
        REFUSED[what](x)


@pytest.mark.parametrize("what", ACCEPTED)
def test_it_accepts(what: str, gpu: None) -> None:
    found = ACCEPTED[what](torch.zeros(3, 3, device="cuda"))
    assert found.device.type == "cuda" and found.is_cuda


def test_copies_on_the_host_are_on_the_host(gpu: None) -> None:
    x = torch.zeros(3, device="cuda")
    for copy in (x.cpu(), x.to("cpu"), torch.empty(3).copy_(x)):
        assert copy.device.type == "cpu" and not copy.is_cuda
        copy += 1  # another memory
    assert x.cpu().numpy().sum() == x.sum().item() == 0
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


def test_gradients_are_where_their_tensors_are(gpu: None) -> None:
    layer = nn.Linear(3, 2).to("cuda")
    (grad,) = torch.autograd.grad(layer(torch.ones(4, 3, device="cuda")).sum(), [layer.weight])
    assert grad.device.type == "cuda"


def test_layers_that_compute_on_a_gpu_do_not_use_the_kernel_of_a_cpu() -> None:
    layer = nn.Sequential(nn.Linear(3, 3).requires_grad_(False))
    speed_up(layer, torch.device("cuda"))
    with pretend_gpu():
        assert layer.to("cuda")(torch.ones(2, 3, device="cuda")).is_cuda
    speed_up(layer, torch.device("cpu"))
    with pretend_gpu(), pytest.raises(MixedDevices, match="mkldnn"):
        layer.to("cuda")(torch.ones(2, 3, device="cuda"))
