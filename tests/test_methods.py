"""Every row of the method table runs, and sends and keeps what its parts say (E29)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import BACKBONES, DOES_NOT_APPLY, settings_on
from device_states import stored
from rotation import in_turn

from fibec_ray.cli.method_page import page
from fibec_ray.config.load import check
from fibec_ray.config.names import method_files
from fibec_ray.errors import ModelError
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.store import StateStore
from fibec_ray.method import AXES, Method
from fibec_ray.parts.part import Part
from fibec_ray.runs.simulation import cache_dir, prepare, simulate

METHODS = [path.stem for path in method_files()]
ALL = [(method, where) for where in BACKBONES for method in METHODS]


@pytest.mark.parametrize(("method", "where"), DOES_NOT_APPLY)
def test_a_method_that_does_not_apply_says_so_before_anything_runs(method: str, where: str, tmp_path: Path) -> None:
    settings = settings_on(where, method, rounds=1)
    with pytest.raises(ModelError, match=f"^{re.escape(DOES_NOT_APPLY[method, where])}$"):
        simulate(check(settings, "test"), tmp_path / "run")


ENCODERS = [(method, where) for method, where in ALL if where == "encoder"]
DECODERS = [case for case in ALL if case not in DOES_NOT_APPLY and case not in ENCODERS]
RUNS = [*ENCODERS, *in_turn(DECODERS, 10, "every method on a decoder")]


@pytest.mark.parametrize(("method", "where"), RUNS)
def test_every_method_runs_and_keeps_to_its_word(method: str, where: str, tmp_path: Path) -> None:
    experiment = check(settings_on(where, method, rounds=2), "test")
    prepared = prepare(experiment, tmp_path)
    worker_spec = WorkerSpec(experiment.job(prepared.answers(experiment.task)), tmp_path, cache_dir())
    fleet = LocalFleet(worker_spec)
    opened = fleet.setup()
    shared = opened.shared_names
    personal = set(opened.layout.layers) - shared
    if method != "fedper":  # which keeps a head, where there is one; others refuse to run without
        assert bool(personal) != ("personal" in experiment.method.sharing.lacks)
    for round_ in range(2):
        plan = plan_round(worker_spec.job, round_)
        result = fleet.run_round(plan)
        assert [report.device for report in result.reports] == list(plan.cohort)
        for report in result.reports:
            assert report.quarantined is None
            if experiment.method.solver.kind == "idle":
                assert report.train_loss is None and report.num_steps == report.num_samples_seen == 0
            else:
                assert report.train_loss is not None and math.isfinite(report.train_loss)
            state = stored(StateStore(worker_spec.state_dir), report.device, before=round_ + 1)
            assert set(state.personal) == personal
    evaluation = fleet.evaluate(1)
    assert evaluation.shared.losses.isfinite().all()
    assert sum(len(own.labels) for own in evaluation.personal.values()) == len(evaluation.shared.labels)


ENTRIES = [(axis, kind) for axis, registry in AXES.items() for kind in registry]


@pytest.mark.parametrize(("axis", "kind"), ENTRIES)
def test_every_part_is_frozen_documented_and_made_from_its_kind_alone(axis: str, kind: str) -> None:
    part = Method.model_validate({axis: kind} | neighbours(axis, kind)).parts[axis]
    assert isinstance(part, Part) and part.kind == kind and type(part) is AXES[axis][kind]
    assert type(part).__doc__ and type(part).model_config["frozen"] and type(part).model_config["extra"] == "forbid"
    assert (
        Method.model_validate(Method.model_validate({axis: kind} | neighbours(axis, kind)).model_dump()).parts[axis]
        == part
    )


def neighbours(axis: str, kind: str) -> dict[str, Any]:
    """What a part cannot do without."""
    part = AXES[axis][kind]()
    return part.usual_partners() | ({"sharing": "body"} if "personal" in part.needs else {})


@pytest.mark.parametrize("axis", AXES)
def test_the_neutral_part_is_the_first_of_its_registry(axis: str) -> None:
    first = next(iter(AXES[axis]))
    assert Method().parts[axis].kind == first and type(Method().parts[axis]) is AXES[axis][first]


def test_fedavg_is_the_empty_composition() -> None:
    assert all(not part.needs_setup for part in Method().parts.values()) and not Method().needs_setup


def test_the_page_of_methods_is_current() -> None:
    """python -m fibec_ray.cli.reference"""
    assert (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8") == page()


def test_the_page_has_every_method_part_and_field() -> None:
    text = page()
    assert all(f"| `{name}` |" in text for name in METHODS)
    for axis, kind in ENTRIES:
        assert f"## `{axis}`" in text and f"### `{kind}`" in text
        assert all(f"| `{field}` |" in text for field in AXES[axis][kind].model_fields if field != "kind")
