"""The bench of streamed weights counts what it copies and multiplies, and runs with and without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_order import ordered
from pretend_gpu import GPU, pretend_gpu

from fibec_ray.bench.stream import Trial, main, overlap

SMALL = ["--hidden", "8", "--inner", "12", "--blocks", "2", "--tokens", "4", "5", "--repeats", "1"]


def test_bytes_and_operations_are_counted_by_hand() -> None:
    """Four weights of 8 x 12 in bfloat16, forward and backward; 5 tokens, 2 operations per weight each way."""
    trial = Trial(8, 12, 2, torch.device("cpu"), torch.bfloat16)
    assert trial.num_bytes == 2 * 4 * 96 * 2 and trial.flops(5) == 2 * 2 * 5 * 4 * 96


@pytest.mark.parametrize(
    ("copies", "products", "both", "expected"),
    [(3.0, 5.0, 5.0, 1.0), (3.0, 5.0, 8.0, 0.0), (4.0, 5.0, 7.0, 0.5), (3.0, 5.0, 4.9, 1.0), (0.0, 5.0, 5.0, None)],
)
def test_the_overlap_is_the_hidden_share_of_the_shorter_one(
    copies: float, products: float, both: float, expected: float | None
) -> None:
    assert overlap(copies, products, both) == expected


def test_without_a_gpu_products_alone_are_timed(capsys: Any) -> None:
    main(["--device", "cpu", *SMALL])
    _, _, _, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("| 4 | – | – | ") and second.startswith("| 5 | ") and second.endswith("| – |")


def test_each_timed_pass_on_a_gpu_is_free_of_races() -> None:
    with pretend_gpu() as gpu, ordered():
        trial = Trial(8, 12, 2, GPU, torch.float32)
        for run in (trial.copies(), trial.products(4, streamed=False), trial.products(4, streamed=True)):
            before = gpu.num_operations
            assert trial.seconds(run, 1) > 0 and gpu.num_operations > before
