"""A grid of values on the command line becomes a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from fibec_ray.config.names import config_folder
from fibec_ray.errors import ConfigError
from fibec_ray.sweeps.grid import parse_grid, values
from fibec_ray.sweeps.load import load_sweep

QUICKSTART = config_folder() / "quickstart.yaml"


def test_commas_inside_brackets_separate_nothing() -> None:
    assert list(values("a, [1,2],{b: 1, c: (2,3)}")) == ["a", "[1,2]", "{b: 1, c: (2,3)}"]
    assert list(values("one")) == ["one"] and list(values("")) == [""]


def test_every_combination_is_a_variant_the_last_key_changing_fastest() -> None:
    grid = parse_grid(["rounds=3", "method=fibecfed,fedavg", "seed=0,2", "cohort_size=2,4"])
    assert grid.common == ("rounds=3",) and grid.seeds == (0, 2)
    assert [name for name, _ in grid.variants] == [
        "fibecfed cohort_size=2",
        "fibecfed cohort_size=4",
        "fedavg cohort_size=2",
        "fedavg cohort_size=4",
    ]
    assert grid.variants[1][1] == ("method=fibecfed", "cohort_size=4")


def test_without_seeds_there_is_one() -> None:
    assert parse_grid(["method=a,b"]).seeds == (0,) and parse_grid(["method=a,b", "seed=7"]).seeds == (7,)


@pytest.mark.parametrize("overrides", [[], ["method=fibecfed"], ["seed=0,1"]])
def test_a_grid_of_one_is_refused(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="nothing to compare: give one key several values"):
        parse_grid(overrides)


@pytest.mark.parametrize("seeds", ["0,0", "a,b", "-1"])
def test_seeds_are_different_whole_numbers(seeds: str) -> None:
    with pytest.raises(ConfigError, match=f"seed={seeds}: expected different whole numbers"):
        parse_grid([f"seed={seeds}", "method=a,b"])


def test_a_grid_over_an_experiment_is_a_sweep_with_the_first_as_reference() -> None:
    sweep = load_sweep(QUICKSTART, ["rounds=2", "method=fibecfed,fedavg", "seed=0,1"])
    assert sweep.reference == "fibecfed" and sweep.seeds == (0, 1)
    assert [run.label for run in sweep.runs] == [
        "fibecfed, seed 0",
        "fedavg, seed 0",
        "fibecfed, seed 1",
        "fedavg, seed 1",
    ]
    assert {run.experiment.rounds for run in sweep.runs} == {2}
    assert [run.experiment.method.name for run in sweep.runs] == ["fibecfed", "fedavg"] * 2


def test_an_unknown_method_in_a_grid_is_named() -> None:
    with pytest.raises(ConfigError, match="variant 'fedevg': .*fedavg"):
        load_sweep(Path(QUICKSTART), ["method=fibecfed,fedevg"])
