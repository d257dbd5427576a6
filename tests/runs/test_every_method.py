"""Whatever a method keeps, on devices or on the server, outlasts the driver."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import DOES_NOT_APPLY, settings_on
from rotation import in_turn
from runs.interrupted import interrupted, result

from fibec_ray.config.load import check
from fibec_ray.config.names import method_files
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import simulate
from fibec_ray.runs.verify import verify

ALL = [path.stem for path in method_files() if (path.stem, "encoder") not in DOES_NOT_APPLY]


@pytest.mark.parametrize("method", in_turn(ALL, 4, "killed and resumed"))
def test_every_method_goes_on_where_it_stopped(method: str, tmp_path: Path) -> None:
    settings = settings_on("encoder", method, num_devices=6, rounds=3)
    calm = tmp_path / "calm"
    expected = result(simulate(check(settings, "test"), calm), calm)
    per_round = 1 if settings["method"].get("pooled") else settings["cohort_size"]
    folder = interrupted(settings, tmp_path / "run", 2 * per_round + 1)
    assert result(resume(folder), folder) == expected
    assert verify(folder).differences == []
