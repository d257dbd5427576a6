"""Garbage is collected in larger steps in processes of a run, and as before in a user's own."""

from __future__ import annotations

import gc

from fibec_ray.garbage import STEPS, large_steps


def test_a_user_s_process_gets_its_steps_back() -> None:
    before = gc.get_threshold()
    with large_steps():
        assert gc.get_threshold() == STEPS != before
    assert gc.get_threshold() == before
