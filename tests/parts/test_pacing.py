"""How much of the data a curriculum shows as rounds go on (E6, E7)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fibec_ray.parts.curriculum.controls import RandomOrder
from fibec_ray.parts.curriculum.pacing import PACINGS, Pacing, fraction_visible, num_visible, progress

each_pacing = pytest.mark.parametrize("pacing", PACINGS)
fractions = st.integers(0, 100).map(lambda percent: percent / 100)
unhurried = settings(deadline=None)  # machines are busy
units, horizons = st.integers(1, 300), st.integers(1, 120)


def counts(pacing: str, num_units: int, rounds: int, beta: float, alpha: float) -> list[int]:
    return [num_visible(pacing, num_units, t, rounds, beta, alpha) for t in range(rounds)]


def test_linear_by_hand() -> None:
    """E6: 10 (.2 + .8 t / 5) = 2, 3.6, 5.2, 6.8, 8.4, 10, 10."""
    assert counts("linear", 10, 10, beta=0.2, alpha=0.5)[:7] == [2, 4, 6, 7, 9, 10, 10]


def test_square_by_hand() -> None:
    """E6: 10 (.2 + .8 (t / 5)^2) = 2, 2.32, 3.28, 4.88, 7.12, 10."""
    assert counts("square", 10, 10, beta=0.2, alpha=0.5)[:6] == [2, 3, 4, 5, 8, 10]


def test_the_other_pacings_by_hand() -> None:
    """At x = 1/4, beta = 1/4 (competence: sqrt(1/16 + 15/64) = sqrt(19)/8)."""
    expected = {
        "linear": 0.25 + 0.75 / 4,
        "square": 0.25 + 0.75 / 16,
        "sqrt": 0.25 + 0.75 / 2,
        "exp": 0.25 + 0.75 * (math.e**2.5 - 1) / (math.e**10 - 1),
        "competence": math.sqrt(19) / 8,
        "geometric": 0.25**0.75,
        "step": 0.25,
        "log": 0.25 + 0.75 * (1 + math.log(0.25 + math.e**-10) / 10),
        "soft": 0.25 + 0.75 / 4,  # where its edge is
    }
    assert expected.keys() == PACINGS.keys()
    for pacing, h in PACINGS.items():
        assert h(0.25, 0.25) == pytest.approx(expected[pacing], rel=1e-12), pacing


def test_the_settings_offer_every_pacing() -> None:
    assert set(Pacing.__args__) == set(PACINGS)


@each_pacing
@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 1.0])
def test_each_rises_from_beta_to_one(pacing: str, beta: float) -> None:
    h = PACINGS[pacing]
    values = [h(i / 50, beta) for i in range(51)]
    assert values[0] == pytest.approx(beta, abs=1e-12) and values[-1] == pytest.approx(1, abs=1e-5)
    assert all(low <= high + 1e-12 for low, high in zip(values, values[1:], strict=False))


@unhurried
@given(x=st.floats(0, 1), beta=st.floats(0, 1))
def test_square_is_below_linear_below_sqrt_and_exp_below_linear(x: float, beta: float) -> None:
    """E7, pointwise."""
    h = {name: PACINGS[name](x, beta) for name in ("square", "linear", "sqrt", "exp")}
    assert h["square"] <= h["linear"] + 1e-12 and h["linear"] <= h["sqrt"] + 1e-12 and h["exp"] <= h["linear"] + 1e-12


@each_pacing
@unhurried
@given(num_units=units, rounds=horizons, beta=fractions, alpha=fractions)
def test_at_least_one_more_and_more_and_all_in_time(
    pacing: str, num_units: int, rounds: int, beta: float, alpha: float
) -> None:
    """E7: b_0 >= 1, monotone, and |B| from round ceil(alpha T) on; alpha in whole percent, so that this is exact."""
    b = counts(pacing, num_units, rounds, beta, alpha)
    assert b[0] >= 1 and b == sorted(b) and b[-1] <= num_units
    full = -(-round(100 * alpha) * rounds // 100)
    assert b[full:] == [num_units] * (rounds - full)


@each_pacing
@unhurried
@given(num_units=units, rounds=horizons, beta=fractions)
def test_alpha_zero_shows_all_at_once(pacing: str, num_units: int, rounds: int, beta: float) -> None:
    assert counts(pacing, num_units, rounds, beta, alpha=0.0) == [num_units] * rounds


@each_pacing
@unhurried
@given(num_units=units, rounds=horizons, alpha=fractions)
def test_beta_one_shows_all_at_once(pacing: str, num_units: int, rounds: int, alpha: float) -> None:
    assert counts(pacing, num_units, rounds, 1.0, alpha) == [num_units] * rounds


@each_pacing
@unhurried
@given(num_units=units, alpha=st.integers(1, 100).map(lambda percent: percent / 100))
def test_beta_zero_starts_with_one_unit(pacing: str, num_units: int, alpha: float) -> None:
    assert num_visible(pacing, num_units, 0, 100, 0.0, alpha) == 1


@each_pacing
@unhurried
@given(rounds=horizons, beta=fractions, alpha=fractions)
def test_a_single_unit_is_always_visible(pacing: str, rounds: int, beta: float, alpha: float) -> None:
    assert counts(pacing, 1, rounds, beta, alpha) == [1] * rounds


@each_pacing
@unhurried
@given(num_units=units, rounds=horizons, beta=st.floats(0, 1), alpha=st.floats(0, 1))
def test_the_last_round_shows_all_at_the_latest(
    pacing: str, num_units: int, rounds: int, beta: float, alpha: float
) -> None:
    """Though alpha T may be more than T - 1; also where the last round is the first one."""
    b = counts(pacing, num_units, rounds, beta, alpha)
    assert b[-1] == num_units and b == sorted(b) and b[0] >= 1
    assert fraction_visible(pacing, rounds - 1, rounds, beta, alpha) == 1


@each_pacing
def test_the_rounds_before_the_last_one_follow_the_formula(pacing: str) -> None:
    """alpha = 1, T = 10: x = t / 10 up to t = 8."""
    found = [fraction_visible(pacing, t, 10, 0.2, 1.0) for t in range(9)]
    assert found == [PACINGS[pacing](t / 10, 0.2) for t in range(9)]
    assert counts("step", 5, 4, 0.2, 1.0) == [1, 1, 1, 5]


@each_pacing
@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-9])
def test_the_smallest_alpha_shows_all_from_the_second_round_on(pacing: str, alpha: float) -> None:
    assert counts(pacing, 10, 4, 0.2, alpha)[1:] == [10] * 3


@unhurried
@given(num_units=units, rounds=horizons, alpha=st.floats(0, 1), softness=st.floats(5e-324, 1e308))
def test_soft_pacing_shows_something_in_each_round_and_all_in_the_last(
    num_units: int, rounds: int, alpha: float, softness: float
) -> None:
    curriculum = RandomOrder(pacing="soft", full_at=alpha, softness=softness)
    batches = list(torch.arange(num_units).split(1))
    seen = [
        len(curriculum.visible({}, batches, t, rounds, torch.Generator().manual_seed(t)))
        for t in sorted({0, rounds // 2, rounds - 1})
    ]
    assert min(seen) >= 1 and seen[-1] == num_units


def test_step_opens_in_the_round_that_alpha_says() -> None:
    """0.55 * 100 is 55.00000000000001 in floats, and round 55 is full all the same."""
    assert counts("step", 10, 100, beta=0.2, alpha=0.55) == [2] * 55 + [10] * 45


def test_progress_by_hand() -> None:
    """T = 8, alpha = .5: t / 4, capped."""
    assert [progress(t, 8, 0.5) for t in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert progress(0, 8, 0.0) == 1.0


def test_float_noise_adds_no_unit() -> None:
    """.2 + .8 / 2 = .6, of 5 units 3, though the product is 3.0000000000000004 in floats."""
    assert 5 * PACINGS["linear"](progress(1, 4, 0.5), 0.2) > 3
    assert num_visible("linear", 5, 1, 4, 0.2, 0.5) == 3
