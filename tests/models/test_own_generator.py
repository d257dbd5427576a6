"""Code without a generator argument draws from ours, and torch's global one stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from fibec_ray.models.own_generator import CHUNK, OwnGenerator

DRAWS: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: nn.init.normal_(torch.empty(3, CHUNK)),
    "uniform": lambda: nn.init.uniform_(torch.empty(5)),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(70, 7, dtype=torch.bfloat16)),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(6, 6)),
    "a column": lambda: torch.zeros(4, 4)[:, 1].normal_(),
    "integers": lambda: torch.empty(9, dtype=torch.int64).random_(100),
    "new values": lambda: torch.randn(4) + torch.rand(4),
    "an order": lambda: torch.randperm(20),
    "nothing": lambda: torch.empty(0).normal_(),
}


def draw(name: str, seed: int) -> Tensor:
    with OwnGenerator(torch.Generator().manual_seed(seed)):
        return DRAWS[name]()


@pytest.mark.parametrize("name", DRAWS)
def test_values_come_from_the_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = draw(name, 1), draw(name, 1), draw(name, 2)
    assert torch.equal(first, again) and (name == "nothing" or not torch.equal(first, other))
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_do_not_disturb_each_other() -> None:
    names = [*DRAWS] * 5
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(draw, names, range(len(names))))
    assert all(
        torch.equal(value, draw(name, seed)) for seed, (name, value) in enumerate(zip(names, found, strict=True))
    )


def test_deviation_and_mean_are_kept() -> None:
    with OwnGenerator(torch.Generator().manual_seed(0)):
        values = torch.empty(300_000, dtype=torch.bfloat16).normal_(0.5, 2.0).float()
    assert abs(float(values.mean()) - 0.5) < 0.02 and abs(float(values.std()) - 2.0) < 0.02
    assert float(values.max()) > 8.5, "the tails are those of float32"


def test_drawing_on_the_meta_device_uses_nothing_up() -> None:
    generator = torch.Generator().manual_seed(0)
    with OwnGenerator(generator):
        torch.empty(3, device="meta").normal_()
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())
