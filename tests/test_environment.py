"""Empty environment variables count as unset, but for CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import classes, make_tiny

import fibec_ray
from fibec_ray.config.load import check
from fibec_ray.environment import drop_empty, read, set_default
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.jobs.address import DEFAULT, ENVIRONMENT, has_token, use_token
from fibec_ray.runs.begin import _near
from fibec_ray.runs.simulation import cache_dir

PACKAGE = Path(fibec_ray.__file__).parent


def node_cache() -> Path:
    """Where this node prepares base weights."""
    experiment = check(make_tiny(), "test")
    return WorkerSpec(experiment.job(classes(2)), Path("run"), Path("drivers")).prepare_base().parents[0]


def token_mode() -> str:
    environment = {name: os.environ[name] for name in os.environ if name.startswith("RAY_") or name == "HOME"}
    use_token(DEFAULT, environment)
    return environment["RAY_AUTH_MODE"]


READS: dict[str, Callable[[], Any]] = {
    "FIBEC_RAY_CACHE": cache_dir,
    "XDG_CACHE_HOME": cache_dir,
    "FIBEC_RAY_RUNS": lambda: _near("s3://bucket/run"),
    "RAY_AUTH_MODE": token_mode,
    "RAY_AUTH_TOKEN": token_mode,
    "RAY_AUTH_TOKEN_PATH": token_mode,
}


@pytest.mark.parametrize("name", READS)
def test_an_empty_variable_is_as_good_as_none(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for other in READS:
        monkeypatch.delenv(other, raising=False)
    if name.startswith("RAY_AUTH"):
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").touch(0o600)
    unset = READS[name]()
    monkeypatch.setenv(name, "")
    assert READS[name]() == unset and str(unset) not in ("", ".", "fibec_ray")


def test_a_node_with_an_empty_cache_variable_uses_the_drivers(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIBEC_RAY_NODE_CACHE", "")
    assert Path("drivers") in node_cache().parents or node_cache() == Path("drivers")


def test_an_empty_address_and_an_empty_home() -> None:
    from fibec_ray.errors import ClusterError
    from fibec_ray.jobs.address import settle

    environment = {"HOME": "", **dict.fromkeys(ENVIRONMENT, "")}
    with pytest.raises(ClusterError, match="http://127.0.0.1:1: nothing answers"):
        settle("127.0.0.1:1", environment)
    assert not has_token({"HOME": "/none", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""})


def test_libraries_do_not_see_empty_variables() -> None:
    """Ray takes an empty RAY_TMPDIR for a folder, and refuses an empty RAY_USAGE_STATS_ENABLED."""
    kept = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "", "RAY_ADDRESS": "head:1", "HOME": "/home/me"}
    empty = dict.fromkeys(("RAY_TMPDIR", "RAY_USAGE_STATS_ENABLED", "XDG_CACHE_HOME", "HF_HOME", "WANDB_MODE"), "")
    environment = kept | empty
    drop_empty(environment)
    assert environment == kept
    homeless = {"HOME": ""}
    drop_empty(homeless)
    assert homeless == {}


def test_defaults_are_set_over_empty_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBEC_TEST", "")
    assert read("FIBEC_TEST") is None
    set_default("FIBEC_TEST", "0")
    set_default("FIBEC_TEST", "1")
    assert read("FIBEC_TEST") == "0"


MAY_READ = {
    "entry.py": "hands all of it to itself",
    "environment.py": "is where reading is done",
    "local_cluster.py": "hands all of it to the functions that prepare Ray's",
    "cluster.py": "an empty CUDA_VISIBLE_DEVICES means no GPU",
    "address.py": "takes Ray's variables out, and gets the mapping from its caller",
    "children.py": "hands all of it to a child",
    "watch.py": "hands all of it to a child",
    "start.py": "hands all of it to a child",
    "instruction_set.py": "hands all of it to a child",
    "deepspeed_base.py": "sets variables",
    "process_state.py": "restores all of it",
    "gpus.py": "an empty CUDA_VISIBLE_DEVICES means no GPU",
}


def test_no_other_file_reads_the_environment() -> None:
    for path in PACKAGE.rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"environ", "getenv"} or path.name in MAY_READ, f"{path}: use fibec_ray.environment"
