"""The check of `python -m fibec_ray.testing` that needs Ray: parts that depend on the process they are in."""

from __future__ import annotations

from pathlib import Path

import pytest

from fibec_ray.parts import own
from fibec_ray.testing import checks

RULES = """
import os
from fibec_ray.parts.objective.base import Objective

class Same(Objective):
    def penalty(self, params, anchor):
        return sum(value.pow(2).sum() for value in params.values())

class ByProcess(Same):
    def penalty(self, params, anchor):
        return super().penalty(params, anchor) * (os.getpid() % 1000 + 1)
"""


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) for name in ("ByProcess", "Same")])
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> checks.Trial:
    file = tmp_path / "rules.py"
    file.write_text(RULES)
    trial = checks.Trial(getattr(own.load_file(file), request.param), {}, tmp_path)
    trial.run("network")
    return trial


@pytest.mark.ray
def test_a_part_that_depends_on_its_process_is_found(trial: checks.Trial, ray_cluster: None) -> None:
    if trial.part.__name__ == "Same":
        assert checks.on_ray(trial) == "two actors, the same bits as one process"
    else:
        with pytest.raises(checks.Broken, match="two actors end with another model or log than one process"):
            checks.on_ray(trial)
