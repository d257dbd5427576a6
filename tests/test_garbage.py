"""Garbage is collected less often in processes of a run. A user's own process gets its thresholds back."""

from __future__ import annotations

import gc

from fibec_ray.garbage import STEPS, large_steps


def test_a_user_s_process_gets_its_thresholds_back() -> None:
    before = gc.get_threshold()
    with large_steps():
        assert gc.get_threshold() == STEPS != before
    assert gc.get_threshold() == before
