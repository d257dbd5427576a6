"""Copies on a separate CUDA stream: no race in any order of passes, two weights at a time, the model's products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cuda_order import Order, Race, ordered
from pretend_gpu import GPU, pretend_gpu
from torch import Tensor, nn

from fibec_ray.models.prefetch import Prefetcher
from fibec_ray.models.side_stream import SideStream
from fibec_ray.models.stream import stream


def layers() -> nn.Sequential:
    """Five products of different sizes; the fourth weight is the largest."""
    torch.manual_seed(0)
    sizes = (4, 6, 5, 8, 9, 3)
    made = [nn.Linear(n, m) for n, m in zip(sizes, sizes[1:], strict=False)]
    return nn.Sequential(*made).requires_grad_(False)


def values(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, gradients, and gradients of gradients, in three passes of different order."""
    found: list[Tensor] = []
    for start in (0, 0, 1):
        given = x.detach()[:, : (4, 6)[start]].clone().requires_grad_()
        y = given
        for layer in list(module.children())[start:]:
            y = layer(y).tanh()
        (first,) = torch.autograd.grad(y.square().sum(), given, create_graph=True)
        found += [y.detach(), first.detach(), *torch.autograd.grad(first.square().sum(), given)]
    return found


def test_passes_in_any_order_have_no_race_and_the_models_values() -> None:
    x = torch.linspace(-1, 1, 18).view(3, 6)
    expected = values(layers(), x)
    with pretend_gpu() as gpu, ordered() as order:
        module = layers()
        visits = stream(module, GPU)
        found = values(module.to(GPU), x.to(GPU))
    assert gpu.num_operations > 50 and visits.num_foreseen > 5
    assert [len(order.streams), order.streams[1].count] == [2, visits.num_fetched + unused(visits)]
    assert all(torch.equal(ours.clone(), plain) for ours, plain in zip(found, expected, strict=True))


def unused(visits: Prefetcher) -> int:
    """Number of copies that were started ahead and not used: a wrong guess in the third pass, and the last copy."""
    return visits.num_ahead - visits.num_foreseen


def test_the_gpu_holds_two_weights_and_the_host_two_buffers() -> None:
    with pretend_gpu(), ordered():
        module = layers()
        largest = max(p.nbytes for n, p in module.named_parameters() if n.endswith("weight"))
        visits = stream(module, GPU)
        values(module.to(GPU), torch.ones(3, 6).to(GPU))
    slots = visits._copier._slots
    assert len(slots) == 2
    assert all(0 < memory.numel() <= largest for slot in slots for memory in (slot._gpu, slot._host))


def without_release(copier: SideStream) -> None:
    copier.release = lambda started: None  # type: ignore[method-assign]


def without_finish(copier: SideStream) -> None:
    copier.finish = lambda started: started.weight  # type: ignore[method-assign]


def without_synchronize(copier: SideStream) -> None:
    for slot in copier._slots:
        slot.synchronize_host = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize("forget", [without_release, without_finish, without_synchronize])
def test_each_wait_is_needed(forget: Callable[[SideStream], None]) -> None:
    """The check finds a race if one kind of wait is missing."""
    weights = [torch.full((3, 3), float(i)) for i in range(4)]
    with pretend_gpu(), ordered() as order:
        copier = SideStream(GPU)
        forget(copier)
        with pytest.raises(Race):
            use(Prefetcher(copier), weights, order)


def use(visits: Prefetcher, weights: list[Tensor], order: Order) -> None:
    x = torch.ones(2, 3).to(GPU)
    for _ in range(3):
        for weight in weights:
            x = x @ visits.fetch(weight)
            visits.ahead()


def test_weights_on_another_gpu_need_no_page_locked_memory() -> None:
    weights = [torch.full((3, 3), float(i)) for i in range(3)]
    with pretend_gpu(), ordered() as order:
        copier = SideStream(GPU)
        use(Prefetcher(copier), [weight.to(GPU) for weight in weights], order)
    assert all(slot._host is None for slot in copier._slots)
