"""Runs with every sampler: resumed, verified, planned, replayed; a user's own sampler too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import make_digits
from runs.interrupted import interrupted, result

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.files.yaml_text import to_yaml
from fibec_ray.parts import own
from fibec_ray.roundlog.reader import read_devices, read_rounds
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import simulate
from fibec_ray.runs.verify import verify
from fibec_ray.samplers import SAMPLERS

OWN = '''
from fibec_ray.samplers.base import Draw, Sampler


class Largest(Sampler):
    """The devices with the most data."""

    skip: int = 0

    def draw(self, draw: Draw) -> tuple[int, ...]:
        ordered = sorted(draw.available, key=lambda device: -draw.sizes[device])
        return tuple(ordered[self.skip : self.skip + draw.count])


class Absent(Sampler):
    def draw(self, draw: Draw) -> tuple[int, ...]:
        return (draw.num_devices,)
'''


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: no class of a file is known by its name."""
    monkeypatch.setattr(own, "_known", {})


def settings_of(sampler: Any, **changes: Any) -> dict[str, Any]:
    return make_digits(sampler=sampler, checkpoint={"every": 1, "keep": "all"}, rounds=4, **changes)


@pytest.mark.parametrize("kind", [kind for kind in SAMPLERS if kind != "uniform"])
def test_a_run_with_every_sampler_goes_on_where_it_stopped(kind: str, tmp_path: Path) -> None:
    settings = settings_of(kind)
    calm = simulate(check(settings, "test"), tmp_path / "calm")
    expected = result(calm, tmp_path / "calm")
    folder = interrupted(settings, tmp_path / "run", 5)
    assert result(resume(folder), folder) == expected
    assert verify(folder, 2).differences == []
    row = read_devices(folder).to_pylist()[-1]
    assert main(["replay", str(folder), "--round", str(row["round"] + 1), "--device", str(row["device"])]) == 0


def test_a_round_without_devices_is_legal(tmp_path: Path) -> None:
    """Poisson with one device of six in the mean: some of ten rounds have none, and the model stays as it was."""
    settings = make_digits(sampler="poisson", rounds=10, cohort_size=1)
    simulate(check(settings, "test"), tmp_path / "run")
    rows = [row for row in read_rounds(tmp_path / "run").to_pylist()]
    empty = [row for row in rows if row["round"] >= 0 and row["num_devices"] == 0]
    assert 0 < len(empty) < 10
    for row in empty:
        before = next(other for other in rows if other["round"] == row["round"] - 1)
        same = ("adapter_digest", "sim_time_s", "bytes_total", "energy_total_j")
        assert [row[name] for name in same] == [before[name] for name in same] and row["train_loss"] is None


@pytest.mark.parametrize("kind", ["poisson", "oort"])
def test_a_plan_counts_the_rounds_of_a_sampler(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e.yaml").write_text(to_yaml(settings_of(kind)))
    assert main(["plan", str(tmp_path / "e.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["traffic_total"] > 0


def test_a_users_sampler_runs_and_its_run_needs_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine.py").write_text(OWN)
    (home / "e.yaml").write_text(to_yaml(settings_of({"kind": "mine.py:Largest", "skip": 1})))
    assert main(["run", str(home / "e.yaml"), "--out", str(tmp_path / "run")]) == 0
    shutil.rmtree(home)
    own._known.clear()
    assert main(["verify", str(tmp_path / "run")]) == 0
    rows = [row for row in read_devices(tmp_path / "run").to_pylist() if row["round"] >= 0]
    assert len({row["device"] for row in rows}) == 3, "the same three in every round"
    assert (tmp_path / "run" / "parts" / "mine.py").read_text() == OWN


def test_a_sampler_that_draws_who_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    experiment = check(settings_of(f"{tmp_path}/mine.py:Absent"), "test")
    with pytest.raises(ConfigError, match="mine.py:Absent: draw returned device 6, which is not available"):
        simulate(experiment, tmp_path / "run")


def test_a_part_of_a_method_is_no_sampler(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(ConfigError, match="is a part for sampler, not for aggregator; set sampler"):
        check(make_digits({"aggregator": f"{tmp_path}/mine.py:Largest"}), "test")
