"""Garbage is collected less often in processes of a run. A user's own process gets its thresholds back."""

from __future__ import annotations

import gc

from fibec_ray.garbage import STEPS, large_steps


def test_a_user_s_process_gets_its_thresholds_back() -> None:
    of_the_tests, users = gc.get_threshold(), (700, 10, 10)
    gc.set_threshold(*users)
    try:
        with large_steps():
            assert gc.get_threshold() == STEPS != users
        assert gc.get_threshold() == users
    finally:
        gc.set_threshold(*of_the_tests)
