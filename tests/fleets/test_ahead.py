"""A local cluster starts before the settings are checked, and only the run that it suits keeps it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fibec_ray.cli.main import main
from fibec_ray.config.load import load_experiment
from fibec_ray.config.names import packaged
from fibec_ray.fleets.ray import local_cluster, processes
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.runs import ahead
from fibec_ray.runs.ahead import Unchecked, started_ahead

TREC = packaged("experiments")["trec"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where clusters have their files: a folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@pytest.mark.parametrize("overrides", [[], ["fleet.num_actors=1", "fleet.object_store_mb=90"], ["num_devices=17"]])
def test_what_is_read_early_is_what_the_checked_settings_say(overrides: list[str], tmp_path: Path) -> None:
    raw = ahead.early_settings(TREC, overrides)
    checked = load_experiment(TREC, overrides)
    found = ahead._of_a_cluster(raw.get("fleet"))
    assert found == Unchecked(checked.fleet.object_store_mb, checked.fleet.num_actors)
    assert raw["num_devices"] == checked.num_devices


def test_a_run_without_fleet_settings_gets_the_default_cluster() -> None:
    assert ahead._of_a_cluster(None) == Unchecked(FleetConfig().object_store_mb, FleetConfig().num_actors)


@pytest.mark.parametrize(
    "fleet", [{"kind": "local"}, {"address": "auto"}, {"kind": ["ray"]}, {"object_store_mb": "many"}, 3, [1]]
)
def test_unusual_settings_and_other_clusters_start_nothing(fleet: Any, short: Path, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(f"fleet: {fleet!r}")
    with started_ahead(tmp_path / "one.yaml", [], pytest.fail) as cluster:
        assert cluster is None
    assert list(short.iterdir()) == []


@pytest.mark.parametrize("text", ["a: [", "- 1", None])
def test_a_file_that_cannot_be_read_is_left_to_the_check(text: str | None, short: Path, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "one.yaml").write_text(text)
    with started_ahead(tmp_path / "one.yaml", ["rounds"], pytest.fail) as cluster:
        assert cluster is None
    assert list(short.iterdir()) == []


@pytest.mark.ray
def test_a_run_whose_settings_are_rejected_leaves_no_cluster(
    short: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "trec", "fleet.object_store_mb=80", "rounds=0"]) == 2
    assert "rounds" in capsys.readouterr().err
    assert list(short.iterdir()) == [] and processes.of(local_cluster.HEAD) == []
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the tests' own cluster, which this process may have joined: a run would use that one."""
    monkeypatch.delitem(sys.modules, "ray", raising=False)


@pytest.mark.ray
def test_a_run_takes_the_waiting_cluster_that_suits_it(short: Path, no_ray: None) -> None:
    waiting = local_cluster.start(Unchecked(80, 1), pytest.fail, 2)
    with local_cluster.started_early(FleetConfig(object_store_mb=80, num_actors=1), 2, pytest.fail, waiting) as cluster:
        assert cluster is waiting
    assert waiting.ended and list(short.iterdir()) == []


@pytest.mark.ray
@pytest.mark.parametrize("settings", [{"object_store_mb": 81}, {"kind": "local"}])
def test_a_waiting_cluster_that_does_not_suit_is_ended_at_once(
    settings: dict[str, Any], short: Path, no_ray: None
) -> None:
    waiting = local_cluster.start(Unchecked(80, 1), pytest.fail, 2)
    config = FleetConfig.model_validate(settings)
    with local_cluster.started_early(config, 2, pytest.fail, waiting) as cluster:
        assert waiting.ended and cluster is not waiting
    assert list(short.iterdir()) == []
