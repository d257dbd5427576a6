"""How much of the data a curriculum shows as rounds go on (E6, E7)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fibec_ray.parts.curriculum.paced import Pacing
from fibec_ray.parts.curriculum.pacing import PACINGS, num_visible, progress

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


@pytest.mark.parametrize("pacing", [name for name in PACINGS if name != "log"])
@pytest.mark.parametrize(("alpha", "all_seen"), [(0.9, True), (0.91, False), (1.0, False)])
def test_the_last_round_shows_all_only_if_alpha_leaves_it_one(pacing: str, alpha: float, all_seen: bool) -> None:
    """h(T - 1) = 1 iff alpha <= (T - 1) / T; here T = 10. (log is within 1/1000 of 1 already at x = .99.)"""
    assert (PACINGS[pacing](progress(9, 10, alpha), 0.2) == 1) == all_seen


def test_step_opens_in_the_round_that_alpha_says() -> None:
    """0.55 * 100 is 55.00000000000001 in floats, and round 55 is full all the same."""
    assert counts("step", 10, 100, beta=0.2, alpha=0.55) == [2] * 55 + [10] * 45


def test_progress_by_hand() -> None:
    """T = 8, alpha = .5: t / 4, capped."""
    assert [progress(t, 8, 0.5) for t in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert progress(0, 8, 0.0) == 1.0


def test_float_noise_adds_no_unit() -> None:
    """.2 + .8 / 2 = .6, of 5 units 3, though the product is 3.0000000000000004 in floats."""
    assert 5 * PACINGS["linear"](progress(1, 2, 1.0), 0.2) > 3
    assert num_visible("linear", 5, 1, 2, 0.2, 1.0) == 3
