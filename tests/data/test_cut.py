"""Which tokens go when a sample is cut: by hand, and what always holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fibec_ray.data.encoded import kept_tokens


def kept(texts: list[int], max_length: int) -> list[int]:
    positions: list[int] = kept_tokens(np.array(texts, dtype=np.uint8), max_length).tolist()
    return positions


@pytest.mark.parametrize(
    ("max_length", "stays"),
    [(9, range(9)), (8, [0, 1, 2, 4, 5, 6, 7, 8]), (7, [0, 1, 2, 4, 5, 6, 8]), (6, [0, 1, 4, 5, 6, 8])],
)
def test_the_longest_text_loses_its_end_and_of_equals_the_first(max_length: int, stays: list[int]) -> None:
    """Texts of 3 at 1 to 3 and of 3 at 5 to 7, less and less room."""
    assert kept([0, 1, 1, 1, 0, 2, 2, 2, 0], max_length) == list(stays)


def test_one_token_of_each_text_stays_and_all_that_are_no_text() -> None:
    assert kept([0, 1, 1, 0, 2, 2, 2, 0], 1) == [0, 1, 3, 4, 7]
    assert kept([0, 2, 2, 0], 1) == [0, 1, 3] and kept([0, 0], 1) == [0, 1] and kept([1, 1], 1) == [0]


@settings(deadline=None, database=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 40), st.integers(1, 40))
def test_to_cut_twice_is_to_cut_once(texts: list[int], first: int, second: int) -> None:
    once = kept(texts, min(first, second))
    longer = kept(texts, max(first, second))
    again = [longer[at] for at in kept([texts[at] for at in longer], min(first, second))]
    assert again == once and len(once) >= min(len(texts), min(first, second))
