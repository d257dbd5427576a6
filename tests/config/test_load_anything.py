"""Whatever mapping an experiment is, it is checked or refused with a ConfigError; property-based."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from conftest import make_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check, load_experiment
from fibec_ray.config.reading import parse_override
from fibec_ray.errors import ConfigError
from fibec_ray.runs.simulation import resolved

QUIETLY = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
TINY = make_tiny()
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=4)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


def paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Of all keys of a mapping, at any depth."""
    if not isinstance(value, dict):
        return [path]
    return [path, *(found for key, below in value.items() for found in paths(below, (*path, str(key))))]


KEYS = [path for path in paths(resolved(check(TINY, "test"))) if path]


def put(settings_: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    (first, *rest), inner = path, settings_.get(path[0])
    below = put(inner if isinstance(inner, dict) else {}, tuple(rest), value) if rest else value
    return {**settings_, first: below}


def load(raw: Any, folder: Path) -> Experiment | None:
    """Through a file, as a user's would come; None if it is refused."""
    (folder / "experiment.yaml").write_text(yaml.dump(raw), encoding="utf-8")
    try:
        return load_experiment(folder / "experiment.yaml")
    except ConfigError as error:
        assert str(error) and len(str(error)) < 5000
        return None


@QUIETLY
@given(path=st.sampled_from(KEYS), value=ANYTHING)
def test_any_value_at_any_key(path: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    """What is taken can be written out, and comes back as what it was."""
    experiment = load(put(TINY, path, value), tmp_path)
    if experiment is not None:
        assert check(yaml.safe_load(yaml.safe_dump(resolved(experiment))), "again") == experiment


@QUIETLY
@given(raw=st.dictionaries(st.sampled_from(sorted(TINY)) | st.text(max_size=6), ANYTHING, max_size=6))
def test_any_mapping(raw: dict[str, Any], tmp_path: Path) -> None:
    load(raw, tmp_path)


@QUIETLY
@given(text=st.text(max_size=30))
def test_any_override(text: str) -> None:
    try:
        keys, _ = parse_override(text)
        assert keys
    except ConfigError as error:
        assert str(error)


@QUIETLY
@given(content=st.binary(max_size=200))
def test_any_bytes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_bytes(content)
    try:
        load_experiment(tmp_path / "experiment.yaml")
    except ConfigError as error:
        assert str(error)
