"""Every draw belongs to a place, whatever process makes it, and when."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from fibec_ray.seeds import Where, generator, numpy_generator, seed_of, seeded_third_party

PLACE: tuple[int, Where, Where, Where] = (7, "epoch", 3, 0)
OTHERS: dict[str, tuple[Where, ...]] = {
    "run seed": (8, "epoch", 3, 0),
    "purpose": (7, "batches", 3, 0),
    "device": (7, "epoch", 4, 0),
    "round": (7, "epoch", 3, 1),
    "order of the elements": (7, "epoch", 0, 3),
    "one element less": (7, "epoch", 3),
    "one element more": (7, "epoch", 3, 0, 0),
    "digits in one place or two": (7, "epoch", 30),
    "type of an element": (7, "epoch", "3", 0),
    "seed as an element": (7, 7, "epoch", 3, 0),
}

DRAW = """
import json
from fibec_ray.seeds import generator, numpy_generator, seed_of
import torch
place = (7, "epoch", 3, 0)
print(json.dumps([seed_of(*place), torch.randperm(20, generator=generator(*place)).tolist(),
                  numpy_generator(*place).random(3).tolist()]))
"""


def draws(*place: Where) -> tuple[list[int], list[float]]:
    run_seed, *where = place
    assert isinstance(run_seed, int)
    torch_draw: list[int] = torch.randperm(20, generator=generator(run_seed, *where)).tolist()
    return torch_draw, numpy_generator(run_seed, *where).random(3).tolist()


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_every_element_of_the_place_matters(other: tuple[Where, ...]) -> None:
    run_seed, *where = other
    assert isinstance(run_seed, int) and seed_of(run_seed, *where) != seed_of(*PLACE)
    (torch_draw, numpy_draw), (torch_other, numpy_other) = draws(*PLACE), draws(*other)
    assert torch_draw != torch_other and numpy_draw != numpy_other


def test_a_place_draws_the_same_whatever_was_drawn_before() -> None:
    first = draws(*PLACE)
    generator(*PLACE)
    torch.rand(100)
    draws(7, "cohort", 0)
    assert draws(*PLACE) == first


def test_another_process_draws_the_same() -> None:
    """With another hash seed, so that no draw rests on Python's hashes."""
    env = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", DRAW], env=env, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(out.stdout) == [seed_of(*PLACE), *draws(*PLACE)]


def test_the_numbers_stay_what_they_are() -> None:
    """A change here changes the result of every run; it must not happen by accident."""
    assert seed_of(7, "epoch", 3, 0) == 112310550619067855368197150794709117055
    assert torch.randperm(5, generator=generator(7, "epoch", 3, 0)).tolist() == [4, 2, 1, 0, 3]


def test_seeds_have_128_bits() -> None:
    seeds = {seed_of(0, "device", k) for k in range(1000)}
    assert len(seeds) == 1000 and max(seeds).bit_length() == 128


def test_third_parties_draw_from_the_place_and_leave_no_trace() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = []
    for where in ("adapter", "adapter", "head"):
        with seeded_third_party(7, where):
            found.append(torch.rand(3).tolist())
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError), seeded_third_party(7, "adapter"):
        torch.rand(3)
        raise ValueError
    assert torch.equal(torch.get_rng_state(), before)


def test_a_numpy_integer_is_the_same_place_as_the_integer() -> None:
    assert seed_of(1, "cohort", int(np.int64(7))) == seed_of(1, "cohort", np.int64(7))
    assert seed_of(1, "cohort", 7) != seed_of(1, "cohort", "7")
