"""What is planned against what was: bytes, operations and device states of small runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_regression, settings_on
from planned_runs import Ran, check_bytes, check_states, check_work, run
from rotation import in_turn

from fibec_ray.config.names import method_files

FROM_SCRATCH = ["fipa-paper", "fedavg-full"]
AT_MOST = {"hetlora", "fipa-paper", "slora", "fedmomentum"}
"""Devices send less where what they learn has a lower rank, and receive less if little has changed since the start."""


def ran_with(method: str, folder: Path) -> Ran:
    return run(make_regression(method) if method in FROM_SCRATCH else settings_on("encoder", method), folder)


@pytest.mark.parametrize("method", in_turn([path.stem for path in method_files()], 4, "plan against run"))
def test_every_method_sends_computes_and_keeps_what_was_planned(method: str, tmp_path: Path) -> None:
    ran = ran_with(method, tmp_path)
    check_bytes(ran, at_most=method in AT_MOST)
    check_work(ran)
    check_states(ran)
