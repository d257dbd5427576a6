"""The trial of lanes trains what it says it trains."""

from __future__ import annotations

import pytest
import torch

from fibec_ray.bench.lanes import Shape, Trial, main, peak_tflops

SMALL = Shape(hidden=64, layers=2, vocabulary=50, batch=2, tokens=6)


def test_operations_are_counted_by_hand() -> None:
    """12 H^2 weights a layer, 2 flops a token each way; attention 4 x 2 x 64 x 6 a token each way; 12 tokens."""
    assert SMALL.flops == 2 * 12 * (2 * 12 * 64**2 * 2 + 4 * 2 * 64 * 6)


def test_every_lane_learns_its_own_samples() -> None:
    trial = Trial(SMALL, "cpu", 3)
    first = trial.step()
    for _ in range(15):
        last = trial.step()
    assert bool((last < 0.7 * first).all())
    heads = trial.values["head.weight"]
    assert not torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])


def test_a_line_for_each_number_of_lanes(capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            "--hidden",
            "64",
            "--layers",
            "1",
            "--vocabulary",
            "50",
            "--batch",
            "1",
            "--tokens",
            "4",
            "--lanes",
            "1",
            "2",
            "--steps",
            "1",
            "--device",
            "cpu",
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| 1", "| 2"]
    assert lines[-2].endswith("1.00x the first")


def test_the_share_of_the_peak_is_left_out_where_it_is_not_known() -> None:
    assert peak_tflops("cpu", None) is None and peak_tflops("cpu", 2.0) == 2.0
