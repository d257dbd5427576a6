"""Who takes part: a suite over every sampler, and each rule by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from fibec_ray import seeds
from fibec_ray.samplers import SAMPLERS
from fibec_ray.samplers.base import Draw, Sampler, Seen
from fibec_ray.samplers.oort import Oort
from fibec_ray.samplers.poisson import Poisson
from fibec_ray.samplers.weighted import Weighted

HISTORY = {device: Seen(device % 3, 10 + device, 1.0 + 0.1 * device, 5.0 + device) for device in range(0, 20, 2)}


def draw(
    round_: int = 5,
    count: int = 6,
    available: Sequence[int] = range(20),
    num_devices: int = 20,
    sizes: Sequence[int] = tuple(range(1, 21)),
    history: Mapping[int, Seen] = HISTORY,
    seed: int = 0,
) -> Draw:
    rng = seeds.numpy_generator(seed, "cohort", round_)
    return Draw(round_, count, available, num_devices, rng, sizes, history)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("case", ["all", "some", "one", "none", "few"])
def test_a_draw_is_of_available_devices_without_repeats_and_the_same_again(kind: str, case: str) -> None:
    available = {"all": range(20), "some": [1, 2, 3, 10, 11, 12, 13, 19], "one": [7], "none": [], "few": [2, 4, 6]}[
        case
    ]
    sampler = SAMPLERS[kind]()
    for round_ in range(30):
        found = sampler.draw(draw(round_, available=available))
        assert len(set(found)) == len(found) and set(found) <= set(available)
        assert all(type(device) is int for device in found)
        assert len(found) == min(6, len(available)) or not sampler.has_fixed_size
        assert found == sampler.draw(draw(round_, available=available))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_rounds_and_seeds_differ(kind: str) -> None:
    sampler = SAMPLERS[kind]()
    assert len({sampler.draw(draw(round_)) for round_ in range(10)}) > 5
    assert sampler.draw(draw(seed=1)) != sampler.draw(draw(seed=2))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sampler_is_the_same_after_a_trip_through_yaml(kind: str) -> None:
    sampler = SAMPLERS[kind]()
    again = SAMPLERS[kind].model_validate_json(sampler.model_dump_json())
    assert again == sampler and again.draw(draw()) == sampler.draw(draw())


def test_poisson_draws_each_device_alone() -> None:
    """Of 2000 rounds with q = 6/20: mean size 6 (deviation 0.05), variance 20 * 0.3 * 0.7 = 4.2, sometimes none."""
    cohorts = [Poisson().draw(draw(round_)) for round_ in range(2000)]
    sizes = [len(cohort) for cohort in cohorts]
    assert np.mean(sizes) == pytest.approx(6, abs=0.15) and np.var(sizes) == pytest.approx(4.2, abs=0.4)
    counts = Counter(device for cohort in cohorts for device in cohort)
    assert all(count / 2000 == pytest.approx(0.3, abs=0.04) for count in counts.values())
    assert () in [Poisson().draw(draw(round_, count=1)) for round_ in range(20)]


def test_a_device_keeps_its_luck_when_others_are_away() -> None:
    """So that a device's probability stays the same in poisson, whoever else is there."""
    whole = Poisson().draw(draw())
    assert Poisson().draw(draw(available=[3, 4, 5, 6, 7, 8])) == tuple(device for device in whole if 3 <= device <= 8)


def test_weighted_draws_by_size() -> None:
    """One of two devices with 1 and 3 samples: 3/4 of 2000 draws are the larger (deviation 1 %)."""
    found = [Weighted().draw(draw(round_, 1, [0, 1], 2, [1, 3]))[0] for round_ in range(2000)]
    assert np.mean(found) == pytest.approx(0.75, abs=0.03)


# --- Oort


def seen(loss: float, seconds: float = 1.0, round_: int = 0, samples: int = 10) -> Seen:
    return Seen(round_, samples, loss, seconds)


def test_oort_scores_by_hand() -> None:
    """Losses 1, 2, 3 of 10 samples, without clipping: (0, 10, 20) / 20. Round 3 (t = 4), all last seen in t = 1:
    sqrt(0.1 ln 4) more. Preferred: the median time 2; the third takes 4, so (2 / 4)^2 of its score is left."""
    history = {0: seen(1, 1), 1: seen(2, 2), 2: seen(3, 4)}
    bonus = math.sqrt(0.1 * math.log(4))
    found = Oort(clip=1, preferred=0.5).scores(history, 3)
    assert found == pytest.approx({0: bonus, 1: 0.5 + bonus, 2: (1 + bonus) / 4})


def test_oort_has_a_larger_bonus_for_devices_seen_early() -> None:
    """The same utility, last seen in t = 1 and in t = 4, at t = 5: sqrt(0.1 ln 5) and half of it."""
    found = Oort(preferred=1).scores({0: seen(1, round_=0), 1: seen(1, round_=3)}, 4)
    assert found[0] == pytest.approx(math.sqrt(0.1 * math.log(5))) and found[1] == pytest.approx(found[0] / 2)


def test_oort_explores_a_share_that_decays_to_its_least() -> None:
    """10 of 20 devices are known. Of 10: share 0.882 in round 1 explores 9; at last 0.2 explores 2."""
    new = [len(set(Oort().draw(draw(round_, count=10))) - HISTORY.keys()) for round_ in (0, 20, 500)]
    assert new == [9, 6, 2]  # 0.9 * 0.98^21 = 0.589: int(0.411 * 10) = 4 are known, but 6 new


def test_oort_draws_the_known_devices_with_the_highest_scores() -> None:
    """No exploration; device 3's score is far above, so it is always among the two; the others are below the cut."""
    history = {0: seen(0.1), 1: seen(0.2), 2: seen(8.0), 3: seen(9.0)}
    sampler = Oort(exploration=0, least_exploration=0, clip=1, preferred=1)
    for round_ in range(20):
        found = sampler.draw(draw(round_, 2, range(4), 4, [1] * 4, history))
        assert sorted(found) == [2, 3]


def test_oort_takes_new_devices_where_known_ones_are_too_few() -> None:
    found = Oort(exploration=0, least_exploration=0).draw(draw(count=6, available=[0, 1, 3, 5, 7, 9]))
    assert sorted(found) == [0, 1, 3, 5, 7, 9]


def test_oort_gets_along_with_devices_that_are_all_alike() -> None:
    history: dict[int, Any] = {device: seen(0.0) for device in range(4)}
    assert len(Oort().draw(draw(0, 3, range(4), 4, [1] * 4, history))) == 3


def test_a_users_sampler_is_a_subclass() -> None:
    class First(Sampler):
        def draw(self, draw: Draw) -> tuple[int, ...]:
            return tuple(draw.available[: draw.count])

    assert First().draw(draw(count=2)) == (0, 1)


def test_an_accountant_knows_only_the_samplers_that_say_so() -> None:
    class Mine(Poisson):
        pass

    assert [SAMPLERS[kind]().law for kind in ("uniform", "poisson", "oort")] == ["fixed", "poisson", None]
    assert Mine().law is None
