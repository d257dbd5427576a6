"""Points of the Fisher-KPP problem: the equation holds for the solution, and boundary points are where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from fibec_ray.data.pde import SOLUTIONS, PdeSettings, generate_test, generate_train, source

WEIGHTED = PdeSettings(interval=(-1, 1), regions=2, num_train=6, num_boundary=2, boundary_weight=9, num_test=5)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_second_derivatives_by_differences(name: str) -> None:
    x, step = np.linspace(-1, 1, 9), 1e-4
    u = SOLUTIONS[name].value
    found = (u(x + step) - 2 * u(x) + u(x - step)) / step**2
    assert SOLUTIONS[name].second(x) == pytest.approx(found, abs=1e-5)


def test_the_cubic_has_the_source_of_the_published_code() -> None:
    x = np.linspace(0, 1, 7)
    assert source(x, "cubic") == pytest.approx(-2 + 6 * x + x**2 - x**3 - x**4 + 2 * x**5 - x**6)


def test_training_rows_are_interior_points_and_then_both_ends() -> None:
    points = generate_train(0, WEIGHTED)
    x, c = points.features[:, 0], points.features[:, 1:]
    assert points.values is not None and points.features.dtype == points.values.dtype == np.float32
    assert x[6:].tolist() == [-1, -1, 1, 1] and (np.abs(x[:6]) < 1).all()
    assert c[:6].tolist() == [[1, 1, -1]] * 6 and c[6:].tolist() == [[0, 3, 0]] * 4
    assert points.values[:6] == pytest.approx(source(x[:6].astype(float), "cubic"), abs=1e-5)
    assert points.values[6:].tolist() == [6, 6, 0, 0]
    assert points.labels.tolist() == [*(x[:6] >= 0), 0, 0, 1, 1]


def test_test_rows_hold_the_solution_at_equal_distances() -> None:
    points = generate_test(WEIGHTED)
    assert points.features.tolist() == [[x, 0, 1, 0] for x in (-1, -0.5, 0, 0.5, 1)]
    assert points.values is not None and points.values.tolist() == [2, 0.375, 0, 0.125, 0]
    assert points.labels.tolist() == [0, 0, 1, 1, 1]


def test_the_seed_decides_the_interior_points() -> None:
    one, again, other = (generate_train(seed, WEIGHTED).features for seed in (3, 3, 4))
    assert (one == again).all() and (one[:6, 0] != other[:6, 0]).all() and (one[6:] == other[6:]).all()


def test_an_empty_interval_is_refused() -> None:
    with pytest.raises(ValidationError, match="its ends are 1 and 1; give the lower one first"):
        PdeSettings(interval=(1, 1))


@pytest.mark.parametrize(("interval", "highest"), [((0, 1), 12.87), ((-1, 1), 3.82)])
def test_the_problem_has_a_second_solution_that_is_far_on_the_default_interval(
    interval: tuple[float, float], highest: float
) -> None:
    """By collocation, from a start above the known solution, which is below .15 on [0, 1]."""
    from scipy.integrate import solve_bvp

    u, (low, high) = SOLUTIONS["cubic"].value, np.array(interval, dtype=float)
    x = np.linspace(low, high, 50)
    start = u(x) + highest * np.sin(np.pi * (x - low) / (high - low))
    found = solve_bvp(
        lambda x, y: np.vstack([y[1], y[0] * (1 - y[0]) - source(x, "cubic")]),
        lambda a, b: np.array([a[0] - u(low), b[0] - u(high)]),
        x,
        np.vstack([start, np.gradient(start, x)]),
    )
    assert found.success and found.sol(x)[0].max() == pytest.approx(highest, abs=0.01)
