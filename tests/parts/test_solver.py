"""The solver that does nothing, and which other parts a solver goes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_LLAMA, after_rounds
from rotation import in_turn

from fibec_ray.config.load import check
from fibec_ray.errors import note_renamed
from fibec_ray.method import Method
from fibec_ray.parts.solver.base import Solver
from fibec_ray.roundlog.reader import read_devices
from fibec_ray.runs.simulation import simulate
from fibec_ray.tensors import digest

DECODER = {"backbone": {"config": TINY_LLAMA, "head": "causal_lm"}, "data": {"max_length": 24}}


def test_the_former_name_of_a_kind_still_works_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    note_renamed.cache_clear()
    assert Method.model_validate({"name": "m", "solver": "once"}).solver == Solver()
    assert Method.model_validate({"name": "m", "solver": {"kind": "once"}}).solver == Solver()
    assert [record.message for record in caplog.records] == [
        "kind 'once' is now called 'single'; the old name works in this release"
    ]


def test_zero_shot_trains_and_sends_nothing(tiny_settings: Any, tmp_path: Path) -> None:
    """With a verbaliser: one score for all models and rounds; the log's training columns are null."""
    run = simulate(check(tiny_settings("zero-shot", **DECODER), "test"), tmp_path / "run")
    rounds = run.rows[1:]
    for row in rounds:
        assert row["train_loss"] is row["learning_rate"] is None
        assert row["bytes_total"] == row["flops"] == row["num_steps"] == row["num_samples_total"] == 0
        assert row["num_batches"] == row["num_devices_trained"] == 0
    scored = [row for row in rounds if row["global_loss"] is not None]
    assert len({row["global_loss"] for row in scored}) == 1 and len(scored) == 2
    for row in scored:
        assert row["personal_loss"] == pytest.approx(row["global_loss"], rel=1e-5)
    devices = [row for row in read_devices(run.folder).to_pylist() if row["round"] >= 0]
    assert len(devices) == 9 and all(row["length_seen"] is None for row in devices)


def test_with_everything_shared_doing_nothing_sends_zeros(tiny_settings: Any, tmp_path: Path) -> None:
    fleet, _, reports = after_rounds(2, tiny_settings({"name": "idle", "solver": "idle"}), tmp_path / "run")
    assert digest(fleet.adapter()) == digest(fleet._worker.initial)
    assert all(report.bytes_up == report.bytes_down > 0 for report in reports)


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (
            {"solver": "idle", "curriculum": "random"},
            "solver 'idle' trains nothing, so curriculum 'random' has no",
        ),
        ({"solver": "idle", "objective": "proximal"}, "solver 'idle' trains nothing, so objective 'proximal' has no"),
        ({"solver": "idle", "aggregator": "nova"}, "solver 'idle' trains nothing, so aggregator 'nova' has no effect"),
        (
            {"solver": "pfedme", "objective": "scaffold"},
            "'scaffold' computes gradients .*, but solver 'pfedme' sends something else",
        ),
        (
            {"solver": "pfedme", "objective": "feddyn", "aggregator": "feddyn"},
            "objective 'feddyn' computes gradients .* set objective: plain, or solver: single",
        ),
        ({"solver": "pfedme", "sharing": "none"}, "solver 'pfedme' needs shared tensors"),
    ],
    ids=lambda value: "+".join(value.values()) if isinstance(value, dict) else "",
)
def test_what_cannot_go_together_is_refused(parts: dict[str, str], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        Method.model_validate(parts)


PAIRS = [(s, o) for s in ("ditto", "fedrep", "fine_tune") for o in ("scaffold", "feddyn", "proximal", "moon")]


@pytest.mark.parametrize(("solver", "objective"), in_turn(PAIRS, 4, "solver and objective"))
def test_what_can_go_together_runs(solver: str, objective: str, tiny_settings: Any, tmp_path: Path) -> None:
    """Control variates and linear terms belong to the shared model's steps, whatever a solver does beside them."""
    method = {
        "name": f"{solver}-{objective}",
        "sharing": "body",
        "solver": solver,
        "objective": objective,
        "aggregator": "feddyn" if objective == "feddyn" else "mean",
    }
    sgd = {"optimizer": "sgd", "learning_rate": 0.1}
    fleet, _, reports = after_rounds(2, tiny_settings(method, cohort_size=6, local=sgd), tmp_path / "run")
    assert all(report.num_steps > 0 and report.train_loss is not None for report in reports)
    assert fleet.evaluate(1).shared.losses.isfinite().all()
